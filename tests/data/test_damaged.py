"""Damage that only decoding shows, met while a model trains."""

import concurrent.futures
import json
import os
import subprocess
import sys

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from PIL import Image

from moco_keras import Checkpoint, augmentations, data, pixel_format
from moco_keras.data import damaged
from moco_keras.recipes import _labeled_data, _run_files


def damage(path):
    """Changes a PNG in its middle, where its header and its end say nothing."""
    contents = bytearray(path.read_bytes())
    place = len(contents) // 2
    contents[place : place + 8] = bytes(8)
    path.write_bytes(contents)


@pytest.fixture
def folder(tmp_path):
    """24 images of two classes; red is their number, and three are damaged."""
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 256, (12 + i % 3, 14, 3), "uint8")
        pixels[..., 0] = i
        place = tmp_path / "images" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    for i in (0, 7, 23):
        damage(tmp_path / "images" / f"class{i % 2}" / f"{i:02}.png")
    return tmp_path / "images"


DAMAGED = ["00.png", "07.png", "23.png"]


def told_of(stream):
    told = []
    stream.damaged.tell = lambda path, reason: told.append((path.name, reason))
    return told


def test_a_scan_does_not_see_the_damage(folder):
    stream = data.read(folder)
    assert stream.num_examples == 24 and not stream.skipped


def test_another_image_of_the_batch_stands_in_its_place(folder):
    stream = data.read(folder)
    told = told_of(stream)
    batches = data.labeled_batches(
        stream, augmentations.evaluation(8), 6, seed=3
    )
    whole = list(stream.encoded(None).as_numpy_iterator())
    images, labels = zip(*batches.take(8).as_numpy_iterator(), strict=True)
    numbers = np.round(np.concatenate(images)[:, 4, 4, 0]).astype(int)
    labels = np.concatenate(labels)
    assert len(numbers) == 48  # two passes
    np.testing.assert_array_equal(labels, numbers % 2)
    assert not {0, 7, 23} & set(numbers)
    assert set(range(24)) - {0, 7, 23} == set(numbers)
    assert sorted(name for name, _ in told) == DAMAGED  # each once
    assert all("PNG" in reason for _, reason in told)
    assert {p.name for p in stream.damaged.found} == set(DAMAGED)
    assert len(whole) == 24


@pytest.mark.slow
def test_a_run_that_meets_damage_resumes_within_a_pass(
    folder, make_model, tmp_path
):
    def train(epochs, name):
        stream = data.read(folder)
        told_of(stream)
        keras.utils.set_random_seed(2)
        model = make_model()
        model.fit(
            data.two_views(stream, augmentations.cifar(8), 4),
            epochs=epochs,
            callbacks=[Checkpoint(tmp_path / name)],
            steps_per_epoch=2,
            verbose=0,
        )
        return [v.numpy() for v in model.query_encoder.variables]

    whole = train(3, "whole")
    train(1, "parts")
    for value, expected in zip(train(3, "parts"), whole, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_images_that_are_loaded_are_those_that_can_be_read(folder):
    stream = data.read(folder)
    told = told_of(stream)
    found = stream.load(image_size=8)
    assert len(found.images) == len(found.labels) == 21
    np.testing.assert_array_equal(found.images[:, 4, 4, 0] % 2, found.labels)
    assert [name for name, _ in told] == sorted(
        DAMAGED, key=lambda name: (int(name[:2]) % 2, name)
    )
    assert len(stream.load(21, image_size=8).images) == 21


def test_a_data_set_of_all_has_another_image_in_their_place(folder):
    stream = data.read(folder)
    files = [e["path"] for e in stream.encoded(None).as_numpy_iterator()]
    numbers = [int(file[-6:-4]) for file in files]
    for i in (0, 7, 23):
        row = numbers.index(i)
        numbers[row] = numbers[(row + 1) % 24]
    found = [x["image"][0, 0, 0] for x in stream.dataset.as_numpy_iterator()]
    assert found == numbers
    assert stream.dataset.cardinality() == 24


def test_no_traceback_tells_of_an_array_without_numbers(tmp_path, capfd):
    for i in range(4):
        pixels = np.full((8, 8, 2), np.nan if i == 2 else i, "float32")
        np.save(tmp_path / f"{i}.npy", pixels)
    stream = data.read(tmp_path, channels=None)
    told = told_of(stream)
    assert len(stream.load().images) == 3
    assert told == [("2.npy", "Pixels that are no numbers, such as NaN")]
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_of_an_augmenter_is_none_of_a_file(folder):
    stream = data.read(folder)
    told = told_of(stream)

    def crop(image):
        tf.debugging.Assert(tf.shape(image)[0] < 13, ["too tall"])
        return tf.cast(image[:8, :8], "float32")

    with pytest.raises(tf.errors.InvalidArgumentError, match="too tall"):
        list(data.labeled_batches(stream, crop, 6, seed=3).take(1))
    assert not told


def test_by_default_a_warning_tells(folder):
    with pytest.warns(UserWarning, match="^Damaged, and skipped") as warned:
        data.load(folder, image_size=8)
    assert len(warned) == 3
    assert "00.png: Invalid PNG data" in str(warned[0].message)


def test_a_batch_without_any_readable_image_is_an_error(folder):
    stream = data.read(folder)
    for path in folder.rglob("*.png"):
        if path.name not in DAMAGED:
            damage(path)
    batches = data.labeled_batches(stream, augmentations.evaluation(8), 6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid PNG"):
        next(iter(batches))
    with (
        pytest.warns(UserWarning),
        pytest.raises(
            ValueError, match="24 that cannot, such as .*png: Invalid PNG.*disk"
        ),
    ):
        stream.load(image_size=8)


def test_evaluation_has_as_many_images_as_labels(folder):
    stream = data.read(folder)
    told = told_of(stream)
    (batch,) = _labeled_data.evaluation_batches(stream, 8)
    images, labels = (x.numpy() for x in batch)
    assert len(images) == len(labels) == 24
    np.testing.assert_array_equal(np.round(images[:, 4, 4, 0]) % 2, labels)
    assert sorted(name for name, _ in told) == DAMAGED


def test_threads_tell_of_each_image_once(folder):
    stream = data.read(folder)
    told = told_of(stream)
    paths = [
        os.fsencode(path) for path in folder.rglob("*") if path.name in DAMAGED
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(stream.damaged.add, [paths] * 32))
    assert sorted(name for name, _ in told) == DAMAGED


def test_damaged_images_are_listed_as_they_are_met(folder, tmp_path, capsys):
    path = tmp_path / "damaged.csv"
    for part in (["a.png"], ["a.png", "b.png"]):  # of a run that resumes
        stream = data.read(folder)
        _run_files.keep_damaged(path, stream.damaged)
        for name in part:
            stream.damaged.tell(folder / name, "It, is")
    lines = path.read_text().splitlines()
    expected = [f'{folder / name},"It, is"' for name in ("a.png", "b.png")]
    assert lines == ["file,reason", *expected]
    assert capsys.readouterr().out.count("Damaged, and skipped") == 3
    stream.damaged.tell(folder / "c.png", "reason")
    path.unlink()
    path.mkdir()
    stream.damaged.tell(folder / "d.png", "reason")  # without an error
    assert "cannot be written" in capsys.readouterr().out


def test_a_list_that_was_cut_off_is_still_one(tmp_path):
    """As a full disk leaves it."""
    path = tmp_path / "damaged.csv"
    path.touch()
    found = damaged.Damaged()
    _run_files.keep_damaged(path, found)
    found.tell(tmp_path / "a.png", "cut off")
    assert _run_files.names_of_damaged(path) == {str(tmp_path / "a.png")}
    path.write_text("of another kind\n1\n")
    assert _run_files.names_of_damaged(path) == {None}


def test_images_of_8_bits_are_refused_where_more_are_expected(folder):
    pixels = pixel_format.PixelFormat(3, (0.0, 65535.0))
    with pytest.raises(ValueError, match=r"in \[0, 65535\].*uint8, which end"):
        data.read(folder).check_images(pixels)


_ON_REPLICAS = """
import json, sys
import replicas, shallow
replicas.logical_devices(2)
import tensorflow as tf
import moco_keras
from moco_keras import augmentations, data
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with shallow.networks(), strategy.scope():
    encoder = moco_keras.build_encoder("resnet18", 8, width=2)
    augmenter = augmentations.crop_and_flip(8)
    model = moco_keras.MoCo(encoder, augmenter, queue_size=16)
    model.compile(optimizer=moco_keras.optimizers.SGD(0.03))
stream = data.read(sys.argv[1])
views = data.two_views(stream, model.augmenter, 8)
losses = model.fit(views, epochs=2, verbose=0).history["loss"]
print(json.dumps([losses, sorted(p.name for p in stream.damaged.found)]))
"""


@pytest.mark.slow
def test_two_replicas_meet_it(folder):
    done = subprocess.run(
        [sys.executable, "-c", _ON_REPLICAS, str(folder)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{programs.ROOT}:{programs.ROOT}/tests/helpers",
        },
    )
    assert done.returncode == 0, done.stderr
    losses, names = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite(losses).all() and names == DAMAGED
    assert done.stderr.count("Damaged, and skipped") == 3
