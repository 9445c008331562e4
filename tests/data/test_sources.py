import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_keras import augmentations, data
from moco_keras.data import builders
from moco_keras.recipes import _data, _settings


def write_images(folder, sizes, mode="RGB", suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(sizes):
        Image.new(mode, size, color=40 + i).save(folder / f"{i}.{suffix}")


def test_folder_with_classes(tmp_path):
    write_images(tmp_path / "cats", [(8, 8)] * 3)
    write_images(tmp_path / "dogs", [(8, 8)] * 2, suffix="jpg")
    (tmp_path / "cats" / ".hidden").write_text("not looked at")
    loaded = data.load(tmp_path)
    assert loaded.images.shape == (5, 8, 8, 3)
    assert loaded.images.dtype == np.uint8
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1]
    assert loaded.class_names == ["cats", "dogs"]


def test_folder_without_classes_of_unequal_sizes(tmp_path):
    write_images(tmp_path, [(8, 8), (10, 20), (30, 9)], mode="L")
    with pytest.raises(ValueError, match="one size.*image_size"):
        data.load(tmp_path)
    loaded = data.load(tmp_path, image_size=6)
    assert loaded.images.shape == (3, 6, 6, 3)
    assert loaded.images[:, 0, 0, 0].tolist() == [40, 41, 42]
    assert loaded.labels.tolist() == [-1, -1, -1]


def test_examples_are_the_same_random_ones_each_time(tmp_path):
    write_images(tmp_path, [(4, 4)] * 30)
    first = data.load(tmp_path, examples=10).images[:, 0, 0, 0]
    second = data.load(tmp_path, examples=10).images[:, 0, 0, 0]
    np.testing.assert_array_equal(first, second)
    assert len(set(first)) == 10
    assert sorted(first) != list(range(40, 50))


def test_two_views_of_images_of_unequal_sizes(tmp_path, make_model):
    write_images(tmp_path, [(8 + i, 20 - i) for i in range(9)])
    stream = data.read(tmp_path)
    assert stream.num_examples == 9
    views = data.two_views(stream.dataset, augmentations.cifar(8), batch_size=4)
    assert [v.shape for v in next(iter(views))] == [(4, 8, 8, 3)] * 2
    history = make_model().fit(views, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="at least one JPEG.*0 other files"):
        data.load(tmp_path)


def test_folder_with_a_file_that_is_not_an_image(tmp_path):
    write_images(tmp_path, [(8, 8)])
    (tmp_path / "notes.jpg").write_text("a list of things to buy")
    loaded = data.load(tmp_path)
    assert len(loaded.images) == 1
    assert loaded.skipped == [
        (
            tmp_path / "notes.jpg",
            "Neither JPEG, PNG, GIF, BMP, WebP, TIFF nor .npy",
        )
    ]
    with pytest.raises(ValueError, match="nothing else.*notes.jpg: Neither"):
        data.load(tmp_path, on_bad_image="error")


@pytest.mark.parametrize("examples", [0, 4])
def test_examples_must_be_available(tmp_path, examples):
    write_images(tmp_path, [(8, 8)] * 3)
    with pytest.raises(ValueError, match=str(examples)):
        data.load(tmp_path, examples=examples)


NAMES = ["my-photos", "my photos", "2024", "textures", "ds/config", "a:1.0.0"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_wins_over_any_name(name, tmp_path, monkeypatch):
    write_images(tmp_path / name, [(8, 8)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(builders, "find_builder", None)  # TFDS is not asked
    for source in (name, f"{name}/", Path(name), f"./{name}", f"~/{name}"):
        assert data.load(source).images.shape == (1, 8, 8, 3)
        assert data.read_folder(source).num_examples == 1


def test_read_named_ignores_folders(textures_dir, tmp_path, monkeypatch):
    """Programs of one data set have to work in any folder."""
    write_images(tmp_path / "textures", [(8, 8)])
    monkeypatch.chdir(tmp_path)
    named = data.read_named("textures", "test", data_dir=textures_dir)
    assert (named.source, named.num_examples) == ("textures/1.0.0", 2000)
    read = _data.by_name("textures")
    images = read(
        _settings.Settings(
            data_dir=str(textures_dir),
            train_examples=9,
            test_examples=3,
            batch_size=8,
        )
    )
    assert images.train.source == images.test.source == "textures/1.0.0"
    with pytest.raises(FileNotFoundError, match="cifar1000.*neither"):
        data.read_named("cifar1000")


@pytest.mark.parametrize("name", [*NAMES[:3], "cifar1000", "", "a/b/c", "~"])
def test_unknown_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=f"'{name}', which is neither"):
        data.load(name)
    with pytest.raises(FileNotFoundError, match=f"that exists.*'{name}', look"):
        data.read_folder(name)
    with pytest.raises(FileNotFoundError, match="'cifar10', which is neither"):
        data.load(Path("cifar10"))  # a path is not a name


@pytest.mark.parametrize("name", ["textures:9.9.9", "textures/large"])
def test_unknown_versions_and_configs(name, textures_dir):
    """A known version is accepted."""
    with pytest.raises(ValueError, match=f"that it knows.*'{name}'"):
        data.read(name, data_dir=textures_dir)
    stream = data.read("textures:1.0.0", "test", data_dir=textures_dir)
    assert stream.source == "textures/1.0.0"


def test_neither_prepared_nor_downloadable(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(builders.urllib.request, "urlopen", refuse)
    with pytest.raises(FileNotFoundError) as caught:
        data.load("cifar10", data_dir=tmp_path / "nothing")
    message = str(caught.value)
    for expected in (
        str(tmp_path / "nothing" / "cifar10"),
        "no network",
        "--data_dir",
        "make demo",
    ):
        assert expected in message
    assert not (tmp_path / "nothing").exists()


def test_textures_through_tfds(textures_dir):
    loaded = data.load("textures", "test", data_dir=textures_dir, examples=50)
    assert loaded.images.shape == (50, 32, 32, 3)
    assert loaded.source == "textures/1.0.0"
    assert len(loaded.class_names) == 10
    with pytest.raises(ValueError, match="split='validation'"):
        data.load("textures", "validation", data_dir=textures_dir)
    with pytest.raises(ValueError, match="At most 2000 examples"):
        data.load("textures", "test", data_dir=textures_dir, examples=2001)


def test_cifar10(cifar10_dir):
    loaded = data.load("cifar10", "train", data_dir=cifar10_dir, examples=500)
    assert loaded.images.shape == (500, 32, 32, 3)
    assert loaded.class_names[3] == "cat"
    again = data.load("cifar10", "train", data_dir=cifar10_dir, examples=300)
    np.testing.assert_array_equal(again.images, loaded.images[:300])


def test_gray_images_by_name_are_read_as_they_are(fashion_dir):
    stream = data.read("fashion_mnist", "test", data_dir=fashion_dir)
    gray = stream.load(8).images
    assert gray.shape[1:] == (28, 28, 1)
    rgb = stream.in_channels(3).load(8).images
    np.testing.assert_array_equal(rgb, np.repeat(gray, 3, axis=-1))
    with pytest.raises(ValueError, match="to one or three. Received: 1 chan"):
        stream.in_channels(2)


def test_color_images_are_read_in_gray(textures_dir):
    stream = data.read("textures", "test", data_dir=textures_dir, examples=8)
    rgb = stream.load().images
    gray = stream.in_channels(1).load().images
    assert gray.shape == (8, 32, 32, 1)
    expected = rgb @ [0.2989, 0.587, 0.114]
    np.testing.assert_allclose(gray[..., 0], expected, atol=1)
    assert stream.in_channels(3) is stream


def test_a_dataset_of_dicts_trains(make_model, textures_dir):
    stream = data.read("textures", "test", data_dir=textures_dir, examples=64)
    model = make_model()
    history = model.fit(stream.dataset.batch(12), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert int(model.queue.pointer) == 64 % 32


def test_folder_with_splits(tmp_path):
    """Laid out as TFDS's `ImageFolder` expects."""
    for place, count in {
        "Train/cats": 2,
        "Train/dogs/small": 1,
        "Train": 1,
        "val/dogs": 3,
        "val/emus": 1,
        "TEST": 2,
    }.items():
        write_images(tmp_path / place, [(8, 8)] * count)
    write_images(tmp_path, [(8, 8)])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "splits.txt").write_text("80, 20")
    splits = data.read_splits(tmp_path)
    assert {k: x.labels.tolist() for k, x in splits.items()} == {
        "train": [-1, 0, 0, 1],
        "validation": [1, 1, 1, 2],
        "test": [-1, -1],
    }
    for name in ("train", "val", "valid", "Validation", "test"):
        loaded = data.load(tmp_path, name)
        stream = splits["validation" if name[0] in "vV" else name]
        assert loaded.labels.tolist() == stream.labels.tolist()
        assert loaded.class_names == ["cats", "dogs", "emus"]
        assert loaded.source == stream.source
        assert sorted((p.name, why[:12]) for p, why in loaded.skipped) == [
            ("0.png", "In none of t"),
            ("splits.txt", "Neither JPEG"),
        ]
    assert data.load(tmp_path).num_examples == 4
    few = data.read_splits(tmp_path, examples=3)
    assert [x.num_examples for x in few.values()].count(3) == 1
    with pytest.raises(ValueError, match="At most 4 examples"):
        data.read_folder(tmp_path, examples=5)
    with pytest.raises(ValueError, match="validation.* split='all'"):
        data.read(tmp_path, "all")


def test_a_folder_beside_splits_is_left_out_and_listed(tmp_path):
    for name in ("train/cats", "train/dogs", "val/cats", "unlabeled"):
        write_images(tmp_path / name, [(8, 8)] * 2)
    splits = data.read_splits(tmp_path)
    assert {k: x.num_examples for k, x in splits.items()} == {
        "train": 4,
        "validation": 2,
    }
    skipped = splits["train"].skipped
    assert [path.parent.name for path, _ in skipped] == ["unlabeled"] * 2
    assert {reason for _, reason in skipped} == {
        "In unlabeled, which is not a split; images directly in train are used"
    }


@pytest.mark.parametrize(
    "folders", [("train", "car"), ("val", "test"), ("cats", "dogs")]
)
def test_folders_that_are_not_splits_are_classes(folders, tmp_path):
    for name in folders:
        write_images(tmp_path / name, [(8, 8)])
    assert data.read_folder(tmp_path).class_names == sorted(folders)
    with pytest.raises(ValueError, match="one of train for.* split='test'"):
        data.load(tmp_path, "test")


def test_images_beside_class_folders(tmp_path):
    for place, count in {"cats": 3, "dogs": 2, "": 4}.items():
        write_images(tmp_path / place, [(8, 8)] * count)
    stream = data.read_folder(tmp_path)
    assert stream.labels.tolist() == 4 * [-1] + 3 * [0] + 2 * [1]
    labeled = stream.only_labelled()
    assert labeled.num_examples == len(labeled.labels) == 5
    loaded = labeled.load()
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1] and loaded.labelled
    assert sorted(labeled.load(5).labels) == [0, 0, 0, 1, 1]
    whole = stream.load()
    assert not whole.labelled
    assert whole.only_labelled().labels.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(whole.only_labelled().images, loaded.images)


CLASS_NAMES = [
    b"%s{0}",
    b"$HOME",
    b"'single' \"double\"",
    b"a b",
    b"a-b",
    b"a\\b",
    b"line\nbreak",
    b"star*[0-9]?",
    "\u05d0\u05d1\u05d2".encode(),
    "\u202egnp.exe".encode(),
    "\U0001f600".encode(),
    b"\xff\xfe",
]


def test_class_names_of_any_bytes(tmp_path):
    """Class numbers do not depend on the locale."""
    for i, name in enumerate(CLASS_NAMES):
        place = tmp_path / os.fsdecode(name)
        place.mkdir()
        image = Image.new("RGB", (4, 4), color=i)
        image.save(place / os.fsdecode(b"of " + name), format="PNG")
    loaded = data.load(tmp_path)
    numbers = loaded.images[:, 0, 0, 0].tolist()
    assert numbers == [CLASS_NAMES.index(name) for name in sorted(CLASS_NAMES)]
    assert loaded.labels.tolist() == list(range(len(CLASS_NAMES)))
    assert loaded.skipped == []
    for name in loaded.class_names:
        assert name.encode() and "\n" not in name
    assert loaded.class_names[-1] == "\\xff\\xfe"


def test_the_source_of_a_folder_identifies_its_images(tmp_path, monkeypatch):
    """It depends on their names and contents, not on their place."""
    folder = tmp_path / "images"
    write_images(folder / "cats", [(8, 8)] * 3)
    (tmp_path / "link").symlink_to(folder)
    source = data.read_folder(folder).source
    assert source.startswith("images ")
    assert data.read_folder(tmp_path / "link").source == source
    monkeypatch.chdir(folder)
    assert data.read_folder(".").source == source
    (folder / "notes.txt").write_text("not an image")
    (folder / "cats" / "0.png").touch()
    assert data.read_folder(folder).source == source
    digest = source.split()[-1]
    folder.rename(tmp_path / "moved")
    assert data.read_folder(tmp_path / "moved").source == f"moved {digest}"
    changed = tmp_path / "moved" / "cats" / "1.png"
    Image.new("RGB", (8, 8), color=99).save(changed)
    assert digest not in data.read_folder(tmp_path / "moved").source


def test_a_folder_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path / "images", [(8, 8)])
    for source in ("~/images", Path("~/images")):
        assert data.read(source).num_examples == 1
        assert len(data.read_splits(source)) == 1
    for read in (data.read, data.read_folder, data.read_splits):
        with pytest.raises(ValueError, match="home folder is known"):
            read("~nobody-here/images")


def write_arrays(folder, **arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def test_gray_among_color_becomes_rgb(tmp_path):
    write_images(tmp_path, [(8, 8)] * 2)
    Image.new("L", (8, 8), 7).save(tmp_path / "gray.png")
    write_arrays(tmp_path, array=np.full((8, 8), 9, "uint8"))
    for channels, expected in ((None, 3), (3, 3), (1, 1)):
        stream = data.read(tmp_path, channels=channels)
        found = stream.load()
        assert found.images.shape == (4, 8, 8, expected)
        assert sorted(found.images[:, 0, 0, 0].tolist())[:2] == [7, 9]
        (note,) = stream.notes
        assert note.startswith("Channels: 2 of 1 channel, such as ")
    for path in (*tmp_path.glob("*.png"),):
        if path.name != "gray.png":
            path.unlink()
    stream = data.read(tmp_path, channels=None)
    assert stream.channels == 1 and not stream.notes
    assert data.read(tmp_path).channels == 3


def test_channels_that_do_not_go_together_are_refused(tmp_path):
    write_images(tmp_path, [(8, 8)])
    write_arrays(tmp_path, four=np.full((8, 8, 4), 5, "uint8"))
    found = data.read(tmp_path, channels=3)
    assert found.load().images.shape == (2, 8, 8, 3)
    assert "those of four channels without the last" in found.notes[0]
    for channels in (None, 1, 4, 5):
        with pytest.raises(
            ValueError, match="1 of 4 channels, such as four.npy"
        ):
            data.read(tmp_path, channels=channels)
    write_arrays(tmp_path, five=np.full((8, 8, 5), 5, "uint8"))
    with pytest.raises(ValueError, match="with channels=None in the channels"):
        data.read(tmp_path)


def test_bands_keep_their_type(tmp_path):
    bands = np.arange(8 * 8 * 13, dtype="int16").reshape(8, 8, 13) - 300
    write_arrays(tmp_path, a=bands, b=bands[::-1])
    found = data.load(tmp_path, channels=None)
    assert found.images.dtype == "int16"
    np.testing.assert_array_equal(found.images, [bands, bands[::-1]])
    write_arrays(tmp_path, c=bands.astype("float32"))
    with pytest.raises(ValueError, match="one type.*1 of float32.*2 of int16"):
        data.load(tmp_path, channels=None)


def test_of_8_and_16_bits_the_upper_8_are_read(tmp_path):
    deep = np.arange(64, dtype="uint16").reshape(8, 8) * 1000
    Image.fromarray(deep).save(tmp_path / "a.png")
    flat = (deep >> 8).astype("uint8")
    write_arrays(tmp_path, b=deep, c=flat, d=flat, e=flat)
    stream = data.read(tmp_path, channels=1)
    found = stream.load().images
    assert found.dtype == "uint8"
    np.testing.assert_array_equal(found[..., 0], [deep >> 8] * 5)
    assert "Of 16 bits the upper 8 are read" in stream.notes[0]
    write_arrays(tmp_path, f=deep, g=deep)  # of which nothing may be lost
    with pytest.raises(ValueError, match="most of them 8 bits.*4 of uint16"):
        data.read(tmp_path, channels=1)


def test_what_is_left_of_files_is_said(tmp_path):
    picture = Image.new("RGB", (8, 8))
    picture.save(
        tmp_path / "stack.tif", save_all=True, append_images=[picture] * 2
    )
    picture.save(tmp_path / "page.tif")
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    assert data.read(tmp_path).notes == [
        "Several pages: 1, such as stack.tif. The first is read of each.",
        "Transparency: 1, such as clear.png. It is ignored.",
    ]
