import contextlib
import csv
import os
import re
import shutil
import signal
import time
from pathlib import Path

import keras
import numpy as np
import programs
import pytest
import shallow
import tensorflow as tf
from PIL import Image

import moco_keras
from moco_keras import plotting
from moco_keras.recipes import (
    _embed_encoder,
    _embed_files,
    _embed_nearest,
    _embed_parts,
    embed,
)
from moco_keras.recipes.embed import EmbedSettings
from moco_keras.system import ownership

BAD = {
    "empty.jpg": "Neither JPEG, PNG, GIF, BMP, WebP, TIFF nor .npy",
    "half.png": "Invalid PNG data, size 100",
    "within/text.jpg": "Neither JPEG, PNG, GIF, BMP, WebP, TIFF nor .npy",
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    keras.utils.set_random_seed(1)
    with shallow.networks():
        small = moco_keras.build_encoder("resnet18", 8, width=4)
    return moco_keras.export_encoder(small, folder)


@pytest.fixture
def folder(rng, tmp_path):
    """Twenty images of different sizes, and three files that are not images."""
    folder = tmp_path / "images"
    (folder / "within").mkdir(parents=True)
    for i in range(20):
        image = rng.integers(0, 256, (9 + i, 30 - i, 3), "uint8")
        name = f"within/{i}.jpg" if i % 2 else f"{i}.png"
        Image.fromarray(image).save(folder / name)
    (folder / "empty.jpg").touch()
    (folder / "half.png").write_bytes((folder / "0.png").read_bytes()[:100])
    (folder / "within" / "text.jpg").write_text("a list of things to buy")
    return folder


@pytest.fixture
def settings(encoder, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(_embed_parts, "_FILES_OF_A_PART", 8)
    return EmbedSettings(
        encoder=str(encoder.parent),
        images=str(folder),
        out=str(tmp_path / "features.npz"),
        batch_size=3,
    )


def changed(settings, **changes):
    return EmbedSettings(**{**vars(settings), **changes})


def serve_each(encoder, paths):
    serve = tf.saved_model.load(encoder).signatures["serve_encoded"]
    return np.concatenate(
        [
            serve(image_bytes=tf.constant([path.read_bytes()]))["embedding"]
            for path in paths
        ]
    )


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_features_are_those_of_the_exported_signature(
    settings, encoder, folder, tmp_path, capsys
):
    embed.embed(settings)
    with np.load(settings.out) as found:
        names, features = found["files"].tolist(), found["features"]
    wanted = {*folder.rglob("*.png"), *folder.rglob("*.jpg")}
    wanted = sorted(p for p in wanted if str(p.relative_to(folder)) not in BAD)
    assert names == [str(path.relative_to(folder)) for path in wanted]
    assert features.dtype == np.float32
    np.testing.assert_allclose(
        features, serve_each(encoder, wanted), rtol=0, atol=1e-5
    )
    with (tmp_path / "features.skipped.csv").open(newline="") as file:
        skipped = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert skipped == {str(folder / name): why for name, why in BAD.items()}
    assert "as images: 3" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.partial"))


def test_duplicate_links_are_skipped_and_listed(settings, folder, capsys):
    embed.embed(settings)
    with np.load(settings.out) as found:
        names = found["files"].tolist()
    (folder / "again").symlink_to("within")
    (folder / "again.png").symlink_to("0.png")
    capsys.readouterr()
    out = settings.out.replace("features", "linked")
    embed.embed(changed(settings, out=out))
    with np.load(out) as found:
        assert found["files"].tolist() == names
    again = "2 A link to what has another name there: again, again.png"
    assert again in capsys.readouterr().out
    assert (
        f"{folder}/again,"
        in Path(out.replace("npz", "skipped.csv")).read_text()
    )
    for name in BAD:
        (folder / name).unlink()
    embed.embed(changed(settings, out=out + ".npz", on_bad_image="error"))


def test_pixels_that_the_encoder_does_not_take_are_skipped(
    settings, folder, tmp_path
):
    """None are cut to 8 bits, and of many channels not some are chosen."""
    for path in BAD:
        (folder / path).unlink()
    deep = np.full((8, 8), 4095, "uint16")
    Image.fromarray(deep).save(folder / "deep.png")
    np.save(folder / "bands.npy", np.zeros((8, 8, 13), "uint8"))
    embed.embed(settings)
    with (tmp_path / "features.skipped.csv").open(newline="") as file:
        found = {
            Path(r["file"]).name: r["reason"] for r in csv.DictReader(file)
        }
    assert found == {
        "deep.png": "Pixels of 16 bits, not of 8",
        "bands.npy": "Images of 13 channels, not 3",
    }


def test_pixels_out_of_range_are_skipped(tmp_path, shallow_networks):
    encoder = moco_keras.build_encoder(
        "resnet18",
        8,
        4,
        channels=1,
        value_range=(0, 4095),
        mean=[0.5],
        std=[0.2],
        width=2,
    )
    export = moco_keras.export_encoder(
        encoder, tmp_path / "encoder", image_dtype="uint16"
    )
    take = _embed_encoder.of_encoder(export)
    for name, value in (("good", 4095), ("bright", 5000)):
        array = np.full((8, 8, 1), value, "uint16")
        np.save(tmp_path / f"{name}.npy", array)
    assert take.why_not(tmp_path / "good.npy") is None
    reason = "Pixels from 5000 to 5000, not in [0, 4095]"
    assert take.why_not(tmp_path / "bright.npy") == reason
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    export = moco_keras.export_encoder(encoder, tmp_path / "of_floats")
    take = _embed_encoder.of_encoder(export)
    assert take.why_not(tmp_path / "good.npy") is None
    reason = "Pixels of 8 bits, not in [0, 4095]"
    assert take.why_not(tmp_path / "photo.png") == reason


def test_an_interrupted_embedding_resumes(settings, monkeypatch):
    embed.embed(changed(settings, out=settings.out.replace("fea", "whole_fea")))
    embed_batch, batches = _embed_parts.embed_batch, []

    def stop_at(number):
        def embed_some(*args):
            batches.append(args)
            if len(batches) == number:
                raise KeyboardInterrupt
            return embed_batch(*args)

        return embed_some

    # Parts of 3, 3 and 2 batches, for 8, 8 and 7 files.
    monkeypatch.setattr(_embed_parts, "embed_batch", stop_at(5))
    with pytest.raises(KeyboardInterrupt):
        embed.embed(settings)
    batches.clear()
    monkeypatch.setattr(_embed_parts, "embed_batch", stop_at(None))
    embed.embed(settings)
    embedded = sum(len(paths) for _, paths, _ in batches)
    assert embedded >= 8 + 7 and batches[0][1][0].name != "0.png"
    with (
        np.load(settings.out) as found,
        np.load(settings.out.replace("fea", "whole_fea")) as whole,
    ):
        origin = {"encoder", "images", "on_bad_image"}
        assert set(found) == {"features", "files", *origin}
        for name in found:
            np.testing.assert_array_equal(found[name], whole[name])


def interrupt(settings, monkeypatch):
    """Stops an embedding when all its parts are there, but not joined."""
    with monkeypatch.context() as patch:
        patch.setattr(_embed_parts, "join", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            embed.embed(settings)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_error_says_how_to_resume(
    number, settings, monkeypatch, capsys, ctrl_c
):
    embed_batch = _embed_parts.embed_batch

    def embed_some(*args):
        os.kill(os.getpid(), number)
        time.sleep(0.3)  # a thread answers
        return embed_batch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_embed_parts, "embed_batch", embed_some)
        with pytest.raises((KeyboardInterrupt, SystemExit)) as ended:
            embed.embed(settings)
    if number == signal.SIGTERM:
        assert ended.value.code == 128 + number
    assert "To resume, give the same command again" in capsys.readouterr().err
    embed.embed(settings)


def test_an_embedding_resumes_after_a_full_disk(settings, monkeypatch):
    save, saved = _embed_files.save_npz, []

    def fill_up(path, **arrays):
        saved.append(path)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        save(path, **arrays)

    monkeypatch.setattr(_embed_files, "save_npz", fill_up)
    with pytest.raises(OSError, match=r"No space left.*\n.*same command"):
        embed.embed(settings)
    embed.embed(settings)
    assert len(saved) == 2 + 2  # the other parts
    with np.load(settings.out) as found:
        assert len(found["files"]) == 20


def flip_a_bit(path, position, bit=0):
    contents = bytearray(path.read_bytes())
    contents[position] ^= 1 << bit
    path.write_bytes(contents)


def test_a_damaged_part_is_named_and_embedded_again(
    settings, tmp_path, monkeypatch, capsys
):
    interrupt(settings, monkeypatch)
    (folder,) = tmp_path.glob("*.partial")
    first, second, third = sorted(folder.glob("*.npz"))
    untouched = third.stat().st_mtime_ns
    with np.load(first) as part:
        expected = part["features"]
    flip_a_bit(first, first.read_bytes().index(expected.tobytes()))
    second.write_bytes(second.read_bytes()[:-100])
    with monkeypatch.context() as patch:
        join = _embed_parts.join
        patch.setattr(
            _embed_parts,
            "join",
            lambda parts, *args: (
                np.testing.assert_array_equal(
                    third.stat().st_mtime_ns, untouched
                ),
                join(parts, *args),
            )[1],
        )
        embed.embed(settings)
    error = capsys.readouterr().err
    assert f"{first} is damaged" in error and f"{second} is damaged" in error
    assert str(third) not in error
    with np.load(settings.out) as found:
        np.testing.assert_allclose(
            found["features"][: len(expected)], expected, atol=1e-5
        )
        assert len(found["files"]) == 20


def test_a_flipped_bit_never_changes_a_value(tmp_path):
    """The file is refused, or read as it was written."""
    arrays = {
        "features": np.arange(6, dtype="float32").reshape(3, 2),
        "files": np.array(["a.png", "b/c.png"]),
        "skipped": np.array([]),
        "reasons": np.array(["why"]),
    }
    path = tmp_path / "part.npz"
    _embed_files.save_npz(path, **arrays)
    whole, refused = path.read_bytes(), 0
    for position in range(len(whole)):
        path.write_bytes(whole)
        flip_a_bit(path, position, position % 8)
        try:
            with _embed_files.open_npz(path, arrays) as found:
                for name, array in arrays.items():
                    np.testing.assert_array_equal(found[name], array)
                    assert found[name].dtype == array.dtype
        except ValueError:
            refused += 1
    assert refused > len(whole) / 2
    for length in range(0, len(whole), 10):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError):
            _embed_files.open_npz(path, arrays)


def test_the_error_names_a_damaged_file_of_embeddings(settings):
    embed.embed(settings)
    out = Path(settings.out)
    with np.load(out) as found:
        flip_a_bit(out, out.read_bytes().index(found["features"].tobytes()))
    damaged = out.read_bytes()
    with pytest.raises(
        FileExistsError, match="npz, which .*damaged.*remove it"
    ):
        embed.embed(settings)
    assert out.read_bytes() == damaged


def test_temporary_files_of_drawing_are_hidden_and_removed(
    settings, folder, tmp_path, monkeypatch
):
    """Also those of a process that was killed and could not remove them."""
    draw = plotting.nearest
    leftover = tmp_path / ".partial-of_a_dead_process"
    leftover.mkdir()
    for i, name in enumerate(["0.png", "2.png"]):

        def draw_and_look(query, pictures, path, channels, before=i):
            draw(query, pictures, path, channels)
            shown = [p for p in path.parents[1].iterdir() if p.name[0] != "."]
            assert path not in tmp_path.iterdir()
            assert len([p for p in shown if p.suffix == ".png"]) == before
            assert not leftover.exists()

        monkeypatch.setattr(plotting, "nearest", draw_and_look)
        embed.embed(changed(settings, neighbours=str(folder / name)))
    assert not [*tmp_path.glob(".*")]
    drawn = [*tmp_path.glob("*.png")]
    assert len(drawn) == 2
    shutil.copy(drawn[0], folder)
    out = str(tmp_path / "others.npz")
    embed.embed(changed(settings, out=out))
    with np.load(out) as found:
        assert drawn[0].name not in found["files"]


@pytest.mark.parametrize("damaged", ["{", "[]", "{}", None])
def test_the_error_names_a_damaged_encoder(
    settings, encoder, tmp_path, damaged
):
    copy = tmp_path / "encoder" / "1"
    shutil.copytree(encoder, copy)
    (copy / "encoder.json").unlink()
    if damaged is not None:
        (copy / "encoder.json").write_text(damaged)
    with pytest.raises(ValueError, match="export it again") as info:
        embed.embed(changed(settings, encoder=str(copy.parent)))
    assert str(copy) in str(info.value)


def test_the_error_names_a_folder_without_an_encoder_and_its_flag(
    settings, tmp_path
):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="^--encoder must be.*empty"):
        embed.embed(changed(settings, encoder=str(tmp_path / "empty")))


def test_an_output_file_has_one_owner(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(_embed_encoder, "of_encoder", None)  # never loaded
    with ownership.hold(Path(settings.out), "It"):
        with pytest.raises(BlockingIOError, match="held by process .* since"):
            embed.embed(settings)
    assert {p.name for p in tmp_path.iterdir()} == {"images"}


def test_folders_of_abandoned_embeddings_are_removed(
    settings, folder, tmp_path, monkeypatch
):
    interrupt(settings, monkeypatch)
    (abandoned,) = tmp_path.glob("*.partial")
    foreign = {
        tmp_path / f"features.{name}"
        for name in ("mine.partial", "a.0123456789ab.partial", "0123456789ab")
    }
    for path in foreign:
        path.mkdir()
    shutil.copy(folder / "2.png", folder / "0.png")
    interrupt(settings, monkeypatch)  # on images that changed
    assert abandoned.exists() and len([*tmp_path.glob("features.*")]) == 5
    embed.embed(settings)
    assert {*tmp_path.glob("features.*")} == {
        *foreign,
        tmp_path / "features.npz",
        tmp_path / "features.skipped.csv",
    }


def test_the_list_of_skipped_files_is_that_of_this_embedding(
    settings, folder, tmp_path
):
    embed.embed(settings)
    listed = tmp_path / "features.skipped.csv"
    assert listed.exists()
    Path(settings.out).unlink()
    for name in BAD:
        (folder / name).unlink()
    embed.embed(settings)
    assert not listed.exists()
    listed.write_text("my own list")
    Path(settings.out).unlink()
    with pytest.raises(
        FileExistsError, match="skipped.csv, which is something"
    ):
        embed.embed(settings)
    assert listed.read_text() == "my own list"


@pytest.mark.parametrize("change", ["rename", "write"])
def test_images_that_change_during_an_embedding_are_refused(
    change, settings, folder, tmp_path, monkeypatch
):
    """Files on a disk that vanished are not skipped as unreadable."""
    embed_batch, moved = _embed_parts.embed_batch, folder.with_name("moved")

    def embed_some(encoder, paths, pool):
        if change == "write":
            (folder / "0.png").write_bytes(b"no longer an image")
        else:
            folder.rename(moved)
        monkeypatch.setattr(_embed_parts, "embed_batch", embed_batch)
        return embed_batch(encoder, paths, pool)

    monkeypatch.setattr(_embed_parts, "embed_batch", embed_some)
    with pytest.raises(ValueError, match="0.png, which has changed or is gone"):
        embed.embed(settings)
    assert not [*tmp_path.glob("*.partial/*.npz")]
    if change == "rename":
        moved.rename(folder)
        embed.embed(settings)
        with np.load(settings.out) as found:
            assert len(found["files"]) == 20


def test_a_full_or_read_only_disk(settings, small_disk, monkeypatch):
    disk, make_read_only = small_disk
    settings = changed(settings, out=str(disk / "features.npz"))
    filler = disk / "filler"

    def fill():
        with contextlib.suppress(OSError), filler.open("wb", 0) as file:
            while file.write(bytes(4096)):
                pass

    full = pytest.raises(OSError, match="--out must.*No space left.*\n.*same")
    fill()
    with full:
        embed.embed(settings)
    filler.unlink()
    interrupt(settings, monkeypatch)
    fill()
    with full:
        embed.embed(settings)
    filler.unlink()
    embed.embed(settings)
    with np.load(settings.out) as found:
        assert len(found["files"]) == 20
    make_read_only()
    embed.embed(settings)  # has nothing to write
    another = str(disk / "another.npz")
    with pytest.raises(OSError, match="--out=.*another.npz: Read-only"):
        embed.embed(changed(settings, out=another))


def test_the_folder_of_a_run_stands_for_its_encoder(
    settings, encoder, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "encoder").symlink_to(encoder.parent)
    embed.embed(changed(settings, encoder=str(run)))
    embed.embed(settings)  # the same encoder


@pytest.mark.slow
def test_an_embedding_with_other_flags_is_not_overwritten(
    settings, folder, small_export
):
    embed.embed(settings)
    before = {p: p.stat().st_mtime_ns for p in folder.parent.rglob("*")}
    with pytest.raises(FileExistsError, match="this --encoder"):
        embed.embed(changed(settings, encoder=str(small_export)))
    with pytest.raises(FileExistsError, match="this --on_bad_image"):
        embed.embed(changed(settings, on_bad_image="error"))
    (folder / "0.png").write_bytes((folder / "2.png").read_bytes())
    with pytest.raises(FileExistsError, match="this --images"):
        embed.embed(settings)
    for path, since in before.items():
        assert path.stat().st_mtime_ns == since or path.name == "0.png"


def test_a_file_of_another_program_is_not_overwritten(settings):
    def write_text(file):
        file.write(b"something else")

    for write in (
        write_text,
        lambda file: None,
        lambda file: np.save(file, np.zeros(3)),
        lambda file: np.savez(file, images=np.zeros((3, 8, 8, 3))),
        lambda file: np.savez(file, encoder=np.array([{}], object)),
    ):
        with Path(settings.out).open("wb") as file:
            write(file)
        before = Path(settings.out).read_bytes()
        with pytest.raises(FileExistsError, match="Nothing was changed"):
            embed.embed(settings)
        assert Path(settings.out).read_bytes() == before


def test_changed_images_are_embedded_again(settings, folder, monkeypatch):
    """Parts from before the change are not used."""
    interrupt(settings, monkeypatch)
    shutil.copy(folder / "2.png", folder / "0.png")
    embed.embed(settings)
    with np.load(settings.out) as found:
        rows = dict(zip(found["files"], found["features"], strict=True))
    np.testing.assert_allclose(rows["0.png"], rows["2.png"], atol=1e-5)


def test_it_resumes_from_another_working_folder(settings, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    interrupt(changed(settings, images="images"), monkeypatch)
    monkeypatch.chdir(folder / "within")
    monkeypatch.setattr(_embed_parts, "embed_batch", None)  # not called
    embed.embed(settings)
    with np.load(settings.out) as found:
        assert found["files"][0] == "0.png"


def test_bad_images_are_refused_if_requested(settings, folder):
    with pytest.raises(ValueError, match="empty.jpg: Neither JPEG"):
        embed.embed(changed(settings, on_bad_image="error"))
    for name in BAD:
        (folder / name).unlink()
    embed.embed(changed(settings, on_bad_image="error"))
    assert Path(settings.out).exists()


def test_a_folder_without_images_is_refused(settings, folder):
    for path in [*folder.rglob("*.*")]:
        if str(path.relative_to(folder)) not in BAD:
            path.unlink()
    with pytest.raises(ValueError, match="at least one JPEG.*3 other files"):
        embed.embed(settings)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match="at least one JPEG.*0 other files"):
        embed.embed(settings)


def test_the_nearest_images_are_printed_and_drawn(
    settings, encoder, folder, tmp_path, capsys, monkeypatch
):
    query = folder / "4.png"  # a PNG, since decoders of JPEG differ slightly
    embed.embed(settings)
    capsys.readouterr()
    drawn = []
    draw = plotting.nearest
    monkeypatch.setattr(
        plotting, "nearest", lambda *args: (drawn.append(args), draw(*args))
    )
    monkeypatch.setattr(_embed_parts, "embed_in_parts", None)  # not called
    embed.embed(changed(settings, neighbours=str(query)))
    paths = [
        path
        for path in sorted(folder.rglob("*.*"))
        if str(path.relative_to(folder)) not in BAD and path != query
    ]
    rows = serve_each(encoder, [*paths, query])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows[:-1] @ rows[-1]
    nearest = np.argsort(-cosines)[:9]
    printed = re.findall(r"^  (\S+)  (\S+)$", capsys.readouterr().out, re.M)
    assert [name for _, name in printed] == [
        str(paths[i].relative_to(folder)) for i in nearest
    ]
    np.testing.assert_allclose(
        [float(cosine) for cosine, _ in printed], cosines[nearest], atol=6e-4
    )
    ((shown, others, picture, channels),) = drawn
    assert channels == 3
    np.testing.assert_array_equal(shown, pixels_of(query))
    for (_, _, pixels), i in zip(others, nearest, strict=True):
        assert pixels.shape == pixels_of(paths[i]).shape
    assert [*tmp_path.glob("features-4-*.png")] == [tmp_path / picture.name]
    assert picture.parents[1] == tmp_path and not picture.exists()


@pytest.mark.slow
def test_each_query_has_its_own_picture(
    settings, folder, tmp_path, monkeypatch, capsys
):
    embed.embed(settings)
    queries = [
        folder / "4.png",
        tmp_path / "4.png",
        tmp_path / f"{'é' * 124}.png",
    ]
    for query in queries[1:]:
        shutil.copy(folder / "2.png", query)
    monkeypatch.setattr(embed, "_make", None)  # not called

    def draw(query):
        before = {*tmp_path.glob("features-*.png")}
        embed.embed(changed(settings, neighbours=str(query)))
        printed = capsys.readouterr().out
        drawn = Path(re.search(r"drawn in (.*)", printed)[1])
        return drawn, drawn not in before

    drawn = [draw(query) for query in queries]
    assert len({path for path, _ in drawn}) == 3 and all(
        new for _, new in drawn
    )
    (tmp_path / "link.png").symlink_to(queries[0])
    monkeypatch.chdir(folder)
    for query in ("4.png", tmp_path / "link.png"):
        assert draw(query) == (drawn[0][0], False)
    drawn[0][0].write_bytes(b"my own picture")
    with pytest.raises(FileExistsError, match="something else. Nothing was"):
        draw(queries[0])
    assert drawn[0][0].read_bytes() == b"my own picture"


def test_special_characters_in_names_are_kept(settings, folder, capsys):
    shutil.rmtree(folder / "within")
    for path in [*folder.iterdir()]:
        path.unlink()
    names = ["cost_$5_$6.png", "a $ b $ c.png", os.fsdecode(b"\xff\xfe.png")]
    for name in names:
        Image.new("RGB", (9, 9)).save(folder / name, format="PNG")
    query = str(folder / names[2])
    embed.embed(changed(settings, neighbours=query))
    with np.load(settings.out) as found:
        assert sorted(found["files"]) == sorted(names)
    printed = capsys.readouterr().out
    printed.encode()
    assert printed.count("  1.000  ") == 2
    (folder / names[0]).unlink()
    (folder / names[1]).unlink()
    alone = settings.out.replace("features", "alone")
    embed.embed(changed(settings, out=alone, neighbours=query))
    assert "holds no other image" in capsys.readouterr().out


def test_large_pictures_are_scaled_down(tmp_path):
    Image.new("RGB", (3000, 500)).save(tmp_path / "large.png")
    assert _embed_nearest.pixels(tmp_path / "large.png").shape == (46, 273, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": None}, "--encoder must be given"),
        ({"images": None}, "--images must be given"),
        ({"images": ""}, "--images must be a path, and not empty"),
        ({"images": "gone"}, "--images must be a folder that exists"),
        ({"encoder": "gone"}, "--encoder must be .*--encoder=gone"),
        ({"out": "features"}, "--out must be a file that ends with .npz"),
        ({"out": "gone/features.npz"}, "in a folder that exists"),
        ({"out": f"{'a' * 200}.npz"}, "a name of at most 200 bytes"),
        ({"neighbours": "gone.jpg"}, "--neighbours.*No such file"),
    ],
)
def test_bad_settings_are_refused(settings, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        embed.embed(changed(settings, **changes))


def test_output_among_the_images_is_refused(settings, folder):
    with pytest.raises(ValueError, match="outside of --images"):
        embed.embed(changed(settings, out=str(folder / "features.npz")))
    with pytest.raises(ValueError, match="--batch_size must be a positive"):
        changed(settings, batch_size=0)


# Spaces, quotes, markup, placeholders, patterns, newlines, Hebrew, raw bytes.
ODD = b"a b'\"$x_1$%s{0}*[1]\\\n\xd7\x97\xf0\x9f\x98\x80\xe7\x8c\xab\xff"


@pytest.mark.slow
def test_files_and_folders_may_have_any_name(encoder, tmp_path, rng):
    """Even where the terminal shows few characters."""
    odd = os.fsdecode(ODD)
    images, export = tmp_path / f"images {odd}", tmp_path / f"encoder {odd}"
    shutil.copytree(encoder.parent, export)
    names = [f"{i}{odd}.png" for i in range(3)] + [f"{odd}/0.png", "$.png"]
    for name in names:
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (9, 9, 3), "uint8")
        Image.fromarray(image).save(path, format="PNG")
    (images / f"{odd}.txt").write_text("not an image")
    out = tmp_path / f"out {odd}.npz"
    result = programs.run(
        "embed",
        f"--encoder={export}",
        f"--images={images}",
        f"--out={out}",
        f"--neighbours={images / names[0]}",
        PYTHONIOENCODING="ascii",
    )
    assert result.returncode == 0, result.stderr
    assert "Glyph" not in result.stderr and "Error" not in result.stderr
    with np.load(out) as found:
        assert sorted(found["files"]) == sorted(names)
        rows = dict(zip(found["files"], found["features"], strict=True))
    expected = serve_each(encoder, [images / name for name in names])
    for name, row in zip(names, expected, strict=True):
        np.testing.assert_allclose(rows[name], row, rtol=0, atol=1e-5)
    printed = re.findall(r"^  0\.\d{3}  (.*)$", result.stdout, re.M)
    assert len(printed) == 4 and "$.png" in printed
    assert all(r"\xff" in name for name in printed if name != "$.png")
    assert {path.name for path in tmp_path.iterdir()} > {
        out.name,
        out.with_suffix(".skipped.csv").name,
    }
    (picture,) = tmp_path.glob("out*.png")
    with Image.open(picture) as drawn:
        drawn.load()


@pytest.mark.slow
def test_a_killed_embedding_resumes(settings, tmp_path, rng):
    """One process at a time; finished parts are not embedded again."""
    for i in range(2 * 1024):
        image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), "uint8"))
        image.save(Path(settings.images, f"more{i:05}.png"))
    out = tmp_path / "killed.npz"
    command = (
        "embed",
        f"--encoder={settings.encoder}",
        f"--images={settings.images}",
        f"--out={out}",
    )

    def parts():
        return {
            p: p.stat().st_mtime_ns for p in tmp_path.glob("killed*/0*.npz")
        }

    def wait_for(process, count):
        while len(parts()) < count:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)

    first = programs.start(*command)
    wait_for(first, 1)
    first.send_signal(signal.SIGSTOP)  # so that it does not finish first
    held = f"held by process {first.pid} on"
    with pytest.raises(BlockingIOError, match=held):
        embed.embed(changed(settings, out=str(out)))
    first.kill()
    programs.finish(first)
    written = parts()
    third = programs.start(*command)
    wait_for(third, 2)
    third.terminate()
    third = programs.finish(third)
    assert third.returncode in (0, 128 + signal.SIGTERM), third.stderr
    if third.returncode:
        assert "To resume, give the same command again." in third.stderr
        assert written.items() <= parts().items()
    result = programs.run(*command)
    assert result.returncode == 0, result.stderr
    whole = programs.run(*command[:-1], f"--out={tmp_path}/whole.npz")
    assert whole.returncode == 0
    with np.load(out) as found, np.load(tmp_path / "whole.npz") as expected:
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
    assert {path.name for path in tmp_path.iterdir()} == {
        "images",
        *(f"{name}.npz" for name in ("killed", "whole")),
        *(f"{name}.skipped.csv" for name in ("killed", "whole")),
    }
