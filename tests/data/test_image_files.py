import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from moco_keras import augmentations, data, plotting
from moco_keras.data import decoding, image_files
from moco_keras.system.paths import printable

OTHER = "Neither JPEG nor PNG, GIF or BMP"
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
    "pixel.jpg",
    "within/deeper.png",
    "\\xff\\xfe name.png",
]
SKIPPED = {
    "empty.jpg": OTHER,
    "loop": "A link to what has another name there",
    "itself.jpg": "Too many levels of symbolic links",
    "nothing.jpg": "No such file or directory",
    "photo.webp": OTHER,
    "pipe.jpg": "not a file",
    "short.png": "Invalid PNG",
    "text.jpg": OTHER,
    "truncated.bmp": "Input size should match",
    "truncated.jpg": "jpeg::Uncompress failed. Invalid JPEG data",
    "truncated.png": "Invalid PNG data",
    "vast.gif": LARGE,
    "vast.jpg": LARGE,
    "vast.png": LARGE,
}


def test_bad_images_are_skipped_and_listed(folder):
    scan = image_files.scan(folder)
    names = [printable(path.relative_to(folder)) for path in scan.files]
    assert sorted(names) == sorted(GOOD)
    skipped = {path.name: reason for path, reason in scan.skipped}
    assert skipped.keys() == SKIPPED.keys()
    for name, reason in SKIPPED.items():
        assert skipped[name].startswith(reason), name
    summary = image_files.summary(scan.skipped)
    assert f"taken as images: {len(SKIPPED)}\n" in summary
    assert f"3 {LARGE}: vast.gif, vast.jpg, vast.png" in summary


def test_the_first_bad_image_is_an_error_if_requested(folder):
    with pytest.raises(ValueError, match=r'empty.jpg: Neither.*"skip"'):
        image_files.scan(folder, "error")
    with pytest.raises(ValueError, match="on_bad_image='ignore'"):
        image_files.scan(folder, "ignore")


def test_a_long_scan_shows_its_progress_on_a_terminal(
    folder, capsys, monkeypatch
):
    image_files.scan(folder)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    image_files.scan(folder)  # in less than two seconds
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(image_files, "_PATIENCE", -1)
    image_files.scan(folder)
    count = len(image_files.walk(folder).files)
    assert f"{count}/{count}" in capsys.readouterr().out


def test_good_images_are_decoded_correctly(folder):
    images = {
        path.name: decoding.decode(path.read_bytes()).numpy()
        for path in image_files.scan(folder).files
    }
    expected = np.asarray(noise())
    for name in ("good.bmp", "good.png", "alpha.png"):
        np.testing.assert_array_equal(images[name], expected, name)
    with Image.open(folder / "cmyk.jpg") as cmyk:
        expected = np.asarray(cmyk.convert("RGB"))
    np.testing.assert_allclose(images["cmyk.jpg"], expected, atol=2)
    with Image.open(folder / "deep.png") as deep:
        high_bytes = np.asarray(deep) // 256
    for channel in range(3):
        np.testing.assert_allclose(
            images["deep.png"][..., channel], high_bytes, atol=1
        )
    with Image.open(folder / "moving.gif") as moving:
        first = np.asarray(moving.convert("RGB"))
    np.testing.assert_array_equal(images["moving.gif"], first)
    assert images["pixel.jpg"].shape == (1, 1, 3)


@pytest.mark.slow
def test_good_images_can_be_trained_on(folder, make_model):
    """Even those of one pixel, or with names that are not text."""
    views = data.two_views(data.read(folder), augmentations.moco_v2(8), 5)
    history = make_model().fit(views, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert data.load(folder, image_size=8).images.shape == (10, 8, 8, 3)


def test_memory_is_bounded(folder):
    """Decoding a vast image would take 1.2 GB."""
    code = (
        "import resource; from moco_keras.data import image_files\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"assert len(image_files.scan({str(folder)!r}).skipped) == 14\n"
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
        scan = image_files.scan(tmp_path)
    finally:
        os.seteuid(0)
    assert [path.name for path in scan.files] == ["a.png"]
    assert sorted((path.name, reason) for path, reason in scan.skipped) == [
        ("c.png", "Permission denied"),
        ("shut", "Permission denied"),
    ]


def names_in(folder, paths):
    return [str(path.relative_to(folder)) for path in paths]


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
    found = image_files.walk(folder)
    assert names_in(folder, found.files) == taken
    assert names_in(folder, [path for path, _ in found.left_out]) == skipped
    scan = image_files.scan(folder, "error")  # links are not bad images
    assert names_in(folder, scan.files) == taken
    assert scan.skipped == found.left_out
    assert (
        "10 A link to what has another name there: 7.png, a, b.png, ..."
        in image_files.summary(scan.skipped)
    )
    (tmp_path / "link").symlink_to(folder)
    linked = image_files.walk(tmp_path / "link")
    assert names_in(tmp_path / "link", linked.files) == taken


def test_a_link_to_the_parent_folder(tmp_path):
    noise().save(tmp_path / "1.png")
    (tmp_path / "images").mkdir()
    noise().save(tmp_path / "images" / "2.png")
    (tmp_path / "images" / "above").symlink_to(tmp_path)
    found = image_files.walk(tmp_path / "images")
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
    scan = image_files.scan(tmp_path, "error")
    assert names_in(tmp_path, scan.files) == [
        "1.png",
        "saved_models/image_folder/1.png",
    ]
    assert scan.skipped == [(run, "The folder of a run")]
    # A scan of just that folder takes them.
    assert len(image_files.scan(run).files) == 1


def test_a_picture_that_embed_drew_is_left_out(tmp_path):
    noise().save(tmp_path / "good.png")
    pixels = np.asarray(noise())
    drawn = tmp_path / "features-good-0123abcd.png"
    plotting.nearest(pixels, [("near", 0.5, pixels)], drawn)
    found = image_files.scan(tmp_path)
    assert found.files == [tmp_path / "good.png"]
    assert found.skipped == [(drawn, "A picture that embed drew")]
