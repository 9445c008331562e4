import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from moco_keras import augmentations, data, plotting
from moco_keras.files import progress, scanning, walking
from moco_keras.system.paths import printable

OTHER = "Neither JPEG, PNG, GIF, BMP, WebP, TIFF nor .npy"
LARGE = "More than 50,000,000 pixels"


def noise(width=40, height=30):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), "uint8")
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of all kinds, and files that are not images."""
    folder = tmp_path_factory.mktemp("images")
    for suffix in ("jpg", "png", "bmp"):
        noise().save(folder / f"good.{suffix}")
    noise().convert("CMYK").save(folder / "cmyk.jpg")
    deep = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype("<u2")
    Image.fromarray(deep).save(folder / "deep.png")
    noise().convert("RGBA").save(folder / "alpha.png")
    frames = [noise().rotate(90 * i) for i in range(4)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames)
    noise(1, 1).save(folder / "pixel.jpg")
    name = os.path.join(os.fsencode(folder), b"\xff\xfe name.png")  # noqa: PTH118
    noise().save(name, format="PNG")
    (folder / "within").mkdir()
    noise().save(folder / "within" / "deeper.png")
    (folder / "within" / "loop").symlink_to(folder)
    (folder / ".hidden").write_text("not looked at")

    for suffix in ("jpg", "png", "bmp"):
        whole = (folder / f"good.{suffix}").read_bytes()
        half = folder / f"truncated.{suffix}"
        half.write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "text.jpg").write_text("a list of things to buy")
    noise().save(folder / "photo.webp")
    for suffix in ("jpg", "png", "gif"):
        vast = Image.new("L", (20_000, 20_000))
        vast.save(folder / f"vast.{suffix}")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "nothing.jpg").symlink_to("gone.jpg")
    return folder


GOOD = [
    "alpha.png",
    "cmyk.jpg",
    "deep.png",
    "good.bmp",
    "good.jpg",
    "good.png",
    "moving.gif",
    "photo.webp",
    "pixel.jpg",
    "within/deeper.png",
    "\\xff\\xfe name.png",
]
SKIPPED = {
    "empty.jpg": OTHER,
    "loop": "A link to what has another name there",
    "itself.jpg": "Too many levels of symbolic links",
    "nothing.jpg": "No such file or directory",
    "pipe.jpg": "not a file",
    "short.png": "Invalid PNG",
    "text.jpg": OTHER,
    "truncated.bmp": "Invalid BMP: image file is truncated",
    "truncated.jpg": "jpeg::Uncompress failed. Invalid JPEG data",
    "truncated.png": "Invalid PNG data",
    "vast.gif": LARGE,
    "vast.jpg": LARGE,
    "vast.png": LARGE,
}


def test_bad_images_are_skipped_and_listed(folder):
    scan = scanning.scan(folder)
    names = [printable(Path(path).relative_to(folder)) for path in scan.files]
    assert sorted(names) == sorted(GOOD)
    skipped = {path.name: reason for path, reason in scan.skipped}
    assert skipped.keys() == SKIPPED.keys()
    for name, reason in SKIPPED.items():
        assert skipped[name].startswith(reason), name
    summary = scanning.summary(scan.skipped)
    assert f"taken as images: {len(SKIPPED)}\n" in summary
    assert f"3 {LARGE}: vast.gif, vast.jpg, vast.png" in summary


def test_the_first_bad_image_is_an_error_if_requested(folder):
    with pytest.raises(ValueError, match=r'empty.jpg: Neither JPEG.*"skip"'):
        scanning.scan(folder, "error")
    with pytest.raises(ValueError, match="on_bad_image='ignore'"):
        scanning.scan(folder, "ignore")


def test_a_long_scan_shows_its_progress_on_a_terminal(
    folder, capsys, monkeypatch
):
    scanning.scan(folder)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    scanning.scan(folder)  # in less than two seconds
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress, "_PATIENCE", -1)
    scanning.scan(folder)
    count = len(walking.walk(folder).files)
    shown = capsys.readouterr().out
    assert shown.startswith("\rLooked at 8 of ")
    assert "seconds left" in shown
    assert f"{count} of {count} files" in shown.splitlines()[-1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    monkeypatch.setattr(progress, "_EVERY_LINE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / ".other"))
    scanning.scan(folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Looked at {count} of {count} files"


@pytest.mark.slow
def test_good_images_can_be_trained_on(folder, make_model):
    """Even those of one pixel, or with names that are not text."""
    views = data.two_views(data.read(folder), augmentations.moco_v2(8), 5)
    history = make_model().fit(views, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert data.load(folder, image_size=8).images.shape == (11, 8, 8, 3)


def test_memory_is_bounded(folder):
    """Decoding a vast image would take 1.2 GB."""
    code = (
        "import resource; from moco_keras.files import scanning\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"assert len(scanning.scan({str(folder)!r}).skipped) == 13\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 300_000  # kB


def test_unreadable_files_and_folders_are_skipped(tmp_path):
    if not hasattr(os, "seteuid") or os.geteuid() != 0:
        pytest.skip("only root can switch to another user")
    for path in ("open/a.png", "shut/b.png", "c.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        noise().save(tmp_path / path)
    (tmp_path / "c.png").chmod(0)
    (tmp_path / "shut").chmod(0)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        scan = scanning.scan(tmp_path)
    finally:
        os.seteuid(0)
    assert [Path(path).name for path in scan.files] == ["a.png"]
    assert sorted((path.name, reason) for path, reason in scan.skipped) == [
        ("c.png", "Permission denied"),
        ("shut", "Permission denied"),
    ]


def names_in(folder, paths):
    return [str(Path(path).relative_to(folder)) for path in paths]


def test_linked_files_are_taken_once(tmp_path):
    """Under their own names, even if those of links come first."""
    folder, outside = tmp_path / "images", tmp_path / "outside"
    for path in (
        folder / "m" / "1.png",
        folder / "m" / "deep" / "2.png",
        outside / "3.png",
        outside / "more" / "4.png",
        tmp_path / "5.png",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise().save(path)
    for link, target in {
        "a": folder / "m",  # to a folder
        "z": folder / "m",
        "sub": folder / "m" / "deep",
        "m/up": folder,  # a circle
        "b.png": folder / "m" / "1.png",  # to a file
        "z.png": folder / "m" / "1.png",
        "y": outside,  # to the outside, from which a link leads back
        "x": outside / "more",
        "7.png": tmp_path / "5.png",
        "6.png": tmp_path / "5.png",
        "c.png": outside / "3.png",
    }.items():
        (folder / link).symlink_to(target)
    (outside / "back").symlink_to(folder)
    (folder / "m" / "hard.png").hardlink_to(folder / "m" / "1.png")
    taken = ["6.png", "m/1.png", "m/deep/2.png", "m/hard.png"]
    taken += ["x/4.png", "y/3.png"]
    skipped = ["7.png", "a", "b.png", "c.png", "m/up", "sub", "y/back"]
    skipped += ["y/more", "z", "z.png"]
    found = walking.walk(folder)
    assert names_in(folder, found.files) == taken
    assert names_in(folder, [path for path, _ in found.left_out]) == skipped
    scan = scanning.scan(folder, "error")  # links are not bad images
    assert names_in(folder, scan.files) == taken
    assert scan.skipped == found.left_out
    assert (
        "10 A link to what has another name there: 7.png, a, b.png, ..."
        in scanning.summary(scan.skipped)
    )
    (tmp_path / "link").symlink_to(folder)
    linked = walking.walk(tmp_path / "link")
    assert names_in(tmp_path / "link", linked.files) == taken


def test_a_link_to_the_parent_folder(tmp_path):
    noise().save(tmp_path / "1.png")
    (tmp_path / "images").mkdir()
    noise().save(tmp_path / "images" / "2.png")
    (tmp_path / "images" / "above").symlink_to(tmp_path)
    found = walking.walk(tmp_path / "images")
    assert names_in(tmp_path / "images", found.files) == [
        "2.png",
        "above/1.png",
    ]
    assert [path.name for path, _ in found.left_out] == ["images"]


@pytest.mark.parametrize("of_run", ["history.csv", "checkpoints"])
def test_the_pictures_of_runs_are_left_out(of_run, tmp_path):
    run = tmp_path / "saved_models" / "image_folder" / "20260101-120000"
    run.mkdir(parents=True)
    for place in (tmp_path, run.parent, run):
        noise().save(place / "1.png")
    (run / "settings.json").touch()
    (run / of_run).touch()
    scan = scanning.scan(tmp_path, "error")
    assert names_in(tmp_path, scan.files) == [
        "1.png",
        "saved_models/image_folder/1.png",
    ]
    assert scan.skipped == [(run, "The folder of a run")]
    # A scan of just that folder takes them.
    assert len(scanning.scan(run).files) == 1


def test_a_picture_that_embed_drew_is_left_out(tmp_path):
    noise().save(tmp_path / "good.png")
    pixels = np.asarray(noise())
    drawn = tmp_path / "features-good-0123abcd.png"
    plotting.nearest(pixels, [("near", 0.5, pixels)], drawn)
    found = scanning.scan(tmp_path)
    assert found.files == [str(tmp_path / "good.png")]
    assert found.skipped == [(drawn, "A picture that embed drew")]


def test_digests_tell_images_with_the_same_border_apart(tmp_path):
    for i in range(2):
        pixels = np.zeros((256, 256), "uint16")
        pixels[40:-40, 40:-40] = 1000 + i
        np.save(tmp_path / f"{i}.npy", pixels)
        np.save(tmp_path / f"copy{i}.npy", pixels)
    digests = scanning.scan(tmp_path).digests
    assert digests[0] == digests[2] != digests[1] == digests[3]


@pytest.mark.slow
def test_a_folder_as_people_have_them(tmp_path):
    """1,200 images: six kinds, four sizes, turned, transparent, odd names."""
    rng = np.random.default_rng(0)
    kinds = "jpg", "png", "gif", "bmp", "webp", "tif"
    sizes = (64, 48), (50, 60), (33, 21), (80, 80)
    for i in range(1200):
        kind = kinds[i % 6]
        coarse = rng.integers(0, 256, (4, 4, 4 if i % 5 == 0 else 3), "uint8")
        image = Image.fromarray(coarse).resize(sizes[i % 4])
        if kind == "gif":
            image = image.convert("RGB").quantize(64)
        elif kind in ("jpg", "bmp"):
            image = image.convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 1 + i % 8
        turned = {} if kind in ("gif", "bmp") else {"exif": exif}
        name = ("{}.{}", "an image {}.{}", "\u00fc\u4e2d {}.{}")[i % 3]
        place = tmp_path / ("class a", "kl\u00e4sse")[i % 2]
        place.mkdir(exist_ok=True)
        image.save(place / name.format(i, kind), quality=95, **turned)
    stream = data.read(tmp_path)
    assert stream.num_examples == 1200 and not stream.skipped
    files = stream.encoded(None).as_numpy_iterator()
    differences = {kind: [] for kind in kinds}
    for found, file in zip(
        stream.dataset.as_numpy_iterator(), files, strict=True
    ):
        path = Path(os.fsdecode(file["path"]))
        # From memory: Pillow turns some TIFF files that it maps twice.
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            expected = np.asarray(
                ImageOps.exif_transpose(image).convert("RGB"), int
            )
        assert found["image"].shape == expected.shape, path
        differences[path.suffix[1:]].append(
            np.abs(found["image"] - expected).mean()
        )
    for kind, values in differences.items():
        assert len(values) == 200
        # TensorFlow decodes JPEG in a faster, less exact way.
        assert max(values) <= (3 if kind == "jpg" else 0), (kind, max(values))
