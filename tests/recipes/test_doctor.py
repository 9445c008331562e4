"""What the doctor sees, says, and advises."""

import dataclasses
import json
import os
import shutil
import signal
import types
from pathlib import Path

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from PIL import Image

from moco_keras.data import textures
from moco_keras.distribution import accelerators
from moco_keras.recipes import (
    _defaults,
    _doctor_advice,
    _doctor_findings,
    _doctor_look,
    _doctor_page,
    _doctor_trial,
    _flags,
    _model,
    _pixels,
    _settings,
    doctor,
    image_folder,
)

DEFAULTS = image_folder.DEFAULTS
FAST = dict.fromkeys((16, 32, 64), 1e6)  # images a second, by width


def write(folder, count, size=(32, 32), seed=0):
    """Writes PNG files of textures to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(textures.draw(max(20, count), seed=seed)[0]):
        if i < count:
            Image.fromarray(image).resize(size).save(folder / f"{i}.png")


@pytest.fixture
def photos(tmp_path):
    """A folder of 29 images in two classes, and of what is wrong with it."""
    folder = tmp_path / "photos"
    write(folder / "cats", 12)
    write(folder / "<b>dogs", 9, (40, 20), seed=1)
    for i in range(2):
        shutil.copy(folder / "cats/3.png", folder / f"<b>dogs/copy{i}.png")
    Image.open(folder / "cats/5.png").resize((64, 64)).save(
        folder / "cats/near.png"
    )
    Image.new("RGB", (32, 32), "red").save(folder / "blank.png")
    Image.open(folder / "cats/7.png").convert("L").save(folder / "gray.png")
    Image.open(folder / "cats/8.png").convert("RGBA").rotate(90).save(
        folder / "clear.png"
    )
    deep = np.random.default_rng(0).integers(0, 2**16, (32, 32, 3), "uint16")
    (folder / "deep.png").write_bytes(tf.io.encode_png(deep).numpy())
    Image.open(folder / "cats/9.png").rotate(90).save(
        folder / "photo.jpg", quality=95
    )
    (folder / "notes.txt").write_text("text")
    return folder


def test_what_is_in_a_folder_is_found(photos):
    found = _doctor_look.at(photos)
    numbers = _doctor_findings.summary(found)
    assert numbers["images"] == numbers["looked_at"] == 29
    assert numbers["sizes"] == {"32x32": 19, "40x20": 9, "64x64": 1}
    assert numbers["shorter_side"] == {"least": 20, "median": 32, "most": 64}
    assert numbers["kinds"] == {"PNG": 28, "JPEG": 1}
    assert numbers["channels"] == {"3": 28, "1": 1}
    assert numbers["transparent"] == 1
    assert numbers["depths"] == {"8": 28, "16": 1}
    assert numbers["classes"] == {"<b>dogs": 11, "cats": 13}
    assert numbers["unlabeled"] == 5
    assert numbers["blank"] == ["blank.png"]
    assert numbers["gray"] == 1
    assert sorted(numbers["copies"]) == [
        ["<b>dogs/copy1.png", "<b>dogs/copy0.png"],
        ["cats/3.png", "<b>dogs/copy0.png"],
    ]
    assert ["cats/near.png", "cats/5.png"] in numbers["near_copies"]
    ((path, reason),) = numbers["skipped"]
    assert path.endswith("notes.txt") and "Neither JPEG" in reason
    json.dumps(numbers)


def test_what_is_in_a_folder_is_said(photos, capsys):
    found = _doctor_look.at(photos)
    _doctor_page.print_findings(found, _doctor_findings.summary(found))
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    words = " ".join(page.split())
    for text in (
        "The images of photos",
        "images 29 to train on; all were looked at",
        "the shorter side: 20 to 64 pixels, half of them 32 or less",
        "kinds PNG (96.6%), JPEG (3.4%)",
        "depth 8 bits (96.6%), 16 bits (3.4%)",
        "1 Neither JPEG, PNG, GIF, BMP, WebP, TIFF nor .npy: notes.txt",
        "copies 2 (6.9%)",
        "cats/near.png ~ cats/5.png",
        "blank 1 (3.4%) blank.png",
        "gray 1 (3.4%)",
        "classes 2, of 11 (<b>dogs) to 13 (cats) images; 5 images in none",
        "! 3.4% of the images have one color only.",
        "! 6.9% of the images are exact copies of others.",
        "! Images to learn from: 29, which are few.",
        "! Images of more than 8 bits a channel: 1.",
        "! Images with transparency: 1.",
    ):
        assert text in words


def test_a_healthy_folder_needs_no_remark(tmp_path, monkeypatch):
    write(tmp_path / "a", 8)
    write(tmp_path / "b", 8, seed=3)
    monkeypatch.setattr(_doctor_findings, "_FEW", 16)
    numbers = _doctor_findings.summary(_doctor_look.at(tmp_path))
    assert _doctor_findings.remarks(numbers) == []


def test_unequal_classes_and_gray_images_are_remarked(tmp_path, monkeypatch):
    monkeypatch.setattr(_doctor_findings, "_FEW", 1)
    write(tmp_path / "many", 20)
    write(tmp_path / "few", 2, seed=3)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).convert("L").convert("RGB").save(path)
    numbers = _doctor_findings.summary(_doctor_look.at(tmp_path))
    gray, unequal = _doctor_findings.remarks(numbers)
    assert gray.startswith("All images are gray, but stored in color")
    assert "--channels=1" in gray
    assert unequal.startswith("The largest class has 10 times as many images")


def test_images_that_nearly_equal_others_are_remarked(tmp_path, monkeypatch):
    monkeypatch.setattr(_doctor_findings, "_FEW", 1)
    write(tmp_path / "a", 20)
    write(tmp_path / "b", 4, (64, 64))
    numbers = _doctor_findings.summary(_doctor_look.at(tmp_path))
    assert len(numbers["near_copies"]) == 4
    (remark,) = _doctor_findings.remarks(numbers)
    assert remark.startswith("16.7% of the images nearly equal others.")


def test_only_images_to_train_on_count(tmp_path):
    write(tmp_path / "train/a", 6)
    write(tmp_path / "val/a", 4, (16, 16), seed=1)
    write(tmp_path / "extra", 2, seed=2)
    found = _doctor_look.at(tmp_path)
    numbers = _doctor_findings.summary(found)
    assert numbers["images"] == 6 and numbers["sizes"] == {"32x32": 6}
    assert len(numbers["skipped"]) == 2
    assert [len(files) for files in found.files] == [6, 4]


def test_of_many_images_a_random_part_is_looked_at(tmp_path, capsys):
    write(tmp_path / "a", 40)
    write(tmp_path / "b", 40, (16, 16), seed=1)
    (tmp_path / "a/x.txt").write_text("text")
    found = _doctor_look.at(tmp_path, seconds=0)
    assert len(found.looks) == 1 and not found.whole
    assert found.num_images == 80
    _doctor_page.print_findings(found, _doctor_findings.summary(found))
    words = " ".join(capsys.readouterr().out.split())
    assert "80 to train on; an estimate: 1 were looked at" in words
    assert "copies none; copies of images that were not looked at" in words


def test_splits_are_those_of_all_names(tmp_path, monkeypatch):
    """The part that is looked at holds no image of val."""
    monkeypatch.setattr(_doctor_look, "_MOST", 30)
    write(tmp_path / "train/a", 60)
    write(tmp_path / "unlabeled", 60, seed=1)
    write(tmp_path / "val/a", 1, seed=2)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/1.txt").write_text("text")
    found = _doctor_look.at(tmp_path)
    assert found.files[1] == []
    assert not found.whole and found.num_images == 60


def test_the_looked_at_part_is_random(tmp_path, monkeypatch):
    monkeypatch.setattr(_doctor_look, "_MOST", 20)
    write(tmp_path / "a", 40)
    write(tmp_path / "b", 40, (16, 16), seed=1)
    found = _doctor_look.at(tmp_path)
    assert found.num_images == 80 and len(found.looks) == 20
    assert 4 < sum(x.header.width == 16 for x in found.looks) < 16


def test_splits_of_which_a_part_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(_doctor_look, "_MOST", 20)
    write(tmp_path / "train/a", 20)
    write(tmp_path / "val/a", 20, seed=1)
    found = _doctor_look.at(tmp_path)
    assert found.stream.num_examples + len(found.files[1]) == 20


@pytest.mark.parametrize(
    ("dtype", "high", "expected"),
    [
        ("uint8", 255, (1, None, "gray")),
        ("uint16", 3000, (1, "0,4095", "gray")),
        ("uint16", 60_000, (1, "0,65535", "gray")),
    ],
)
def test_pixels_that_are_not_rgb_get_what_they_need(
    tmp_path, dtype, high, expected
):
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(0, high + 1, (20, 20)).astype(dtype)
        pixels[0, 0] = high
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    found = _doctor_look.at(tmp_path)
    numbers = _doctor_findings.summary(found)
    assert not any("8 bits" in x for x in _doctor_findings.remarks(numbers))
    settings = _doctor_advice._with_pixels(
        dataclasses.replace(DEFAULTS, image_size=16, augmentation="cifar"),
        found,
    )
    got = settings.channels, settings.value_range, settings.augmentation
    assert got == expected
    mean, std = _pixels.parse_normalization(settings.normalize)
    assert 0.3 < mean[0] < 0.6 and 0.1 < std[0] < 0.3


def test_the_range_leaves_room_for_what_was_not_looked_at(tmp_path):
    for i in range(6):
        pixels = np.full((20, 20, 5), -100, "int16")
        pixels[i] = 900
        np.save(tmp_path / f"{i}.npy", pixels)
    found = _doctor_look.at(tmp_path)
    assert _doctor_advice._range(found) == "-100.0,900.0"
    part = found._replace(num_images=100)
    assert _doctor_advice._range(part) == "-200.0,1000.0"
    looks = [look._replace(low=0.0, high=0.003) for look in found.looks]
    small = found._replace(looks=looks)
    assert _doctor_advice._range(small) == "0.0,0.003"


def test_a_data_set_is_looked_at(monkeypatch, tmp_path):
    images, labels = textures.draw(30, seed=0)
    encoded = [tf.io.encode_png(image) for image in images]

    def read_named(name, split, data_dir):
        assert (name, split, data_dir) == ("textures", "train", "here")
        return types.SimpleNamespace(
            encoded=lambda key: tf.data.Dataset.from_tensor_slices(
                {"image": encoded, "label": labels}
            ),
            num_examples=30,
            class_names=[f"kind {i}" for i in range(10)],
            skipped=(),
        )

    monkeypatch.setattr(_doctor_look.data, "read_named", read_named)
    monkeypatch.chdir(tmp_path)
    found = _doctor_look.at("textures", "here")
    numbers = _doctor_findings.summary(found)
    assert found.recipe == "textures" and found.whole
    assert numbers["classes"] == {
        f"kind {i}": count
        for i, count in enumerate(np.bincount(labels))
        if count
    }
    (tmp_path / "textures").mkdir()
    with pytest.raises(ValueError, match="at least one JPEG"):
        _doctor_look.at("textures")


@pytest.mark.parametrize("name", ["nothing", "mnist", ""])
def test_what_is_not_there_is_an_error(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder that exists"):
        _doctor_look.at(name)


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"at least one JPEG.*a\.txt: Neither"):
        _doctor_look.at(tmp_path)


def found_of(num_images, folder="photos"):
    return types.SimpleNamespace(
        num_images=num_images,
        stream=types.SimpleNamespace(channels=3, image_dtype="uint8"),
        seconds_of_image=0.001,
        folder=folder,
        recipe="image_folder" if folder else "cifar10",
        data_dir=None if folder else "/data",
        name="photos",
    )


def advise(found, side=32, minutes=60):
    best, wider = _doctor_advice.try_networks(found, side, minutes)
    return _doctor_advice.of(found, best, wider, side, minutes)


@pytest.fixture
def machine(monkeypatch):
    """A function that sets how many images a second a network trains on.

    It returns the widths for which a model was built.
    """

    def set_to(speeds, on_gpu=False, widest=64, reading=0):
        built = []

        def build(settings, num_images, image_size, strategy):
            if settings.width > widest:
                raise ValueError("no room")
            built.append(settings.width)
            fits = _defaults.what_fits(settings, num_images, on_gpu)
            return dataclasses.replace(settings, **fits), None

        def step_seconds(settings, model, found):
            return settings.batch_size / speeds[settings.width]

        monkeypatch.setattr(_doctor_advice._pretrain, "build", build)
        monkeypatch.setattr(_doctor_trial, "step_seconds", step_seconds)
        monkeypatch.setattr(
            _doctor_trial, "reading_seconds", lambda *_: reading
        )
        monkeypatch.setattr(accelerators, "on_gpu", lambda: on_gpu)
        return built

    return set_to


@pytest.mark.parametrize(
    ("speeds", "widest", "width", "built"),
    [
        ({16: 200}, 64, 16, [16]),
        ({16: 80}, 64, 16, [16]),
        ({16: 250, 32: 100}, 64, 16, [16, 32]),
        ({16: 500, 32: 200}, 64, 32, [16, 32]),
        ({16: 900, 32: 400, 64: 105}, 64, 32, [16, 32, 64]),
        ({16: 900, 32: 400, 64: 150}, 64, 64, [16, 32, 64]),
        ({16: 900, 32: 400, 64: 150}, 32, 32, [16, 32]),
    ],
)
def test_the_widest_network_that_there_is_time_for(
    machine, speeds, widest, width, built
):
    """400,000 images in an hour are 111 a second."""
    trained = machine(speeds, widest=widest)
    advice = advise(found_of(5000))
    assert advice.settings.width == width and trained == built
    reason = advice.reasons["width"]
    assert f"trains on {3600 * speeds[width]:,} images" in reason
    rejected = built[-1] if built[-1] != width else None
    assert ("would train on" in reason) == bool(rejected)
    if rejected:
        assert (
            f"{rejected} would train on {3600 * speeds[rejected]:,}" in reason
        )


def test_few_images_need_less_time(machine):
    """400 epochs of 100 images are 40,000, in an hour 11 a second."""
    machine({16: 90, 32: 30, 64: 12})
    assert advise(found_of(100)).settings.width == 64


def test_without_memory_for_any_network_there_is_an_error(machine):
    machine({}, widest=8)
    with pytest.raises(ValueError, match="no room"):
        advise(found_of(5000))


@pytest.mark.parametrize(
    ("side", "on_cpu", "on_gpu"),
    [
        (1, 16, 16),
        (16, 16, 16),
        (28, 28, 28),
        (32, 32, 32),
        (47.5, 47, 47),
        (50, 48, 48),
        (96, 96, 96),
        (375, 96, 224),
    ],
)
def test_views_are_as_large_as_images_and_time_allow(
    machine, side, on_cpu, on_gpu
):
    machine(FAST)
    cpu = advise(found_of(5000), side)
    machine(FAST, on_gpu=True)
    gpu = advise(found_of(5000), side)
    assert cpu.settings.image_size == on_cpu
    assert gpu.settings.image_size == on_gpu
    small = side <= 50
    backbone = "resnet18" if small else "resnet50"
    assert (gpu.settings.backbone, gpu.settings.width) == (backbone, 64)
    for advice, size in ((cpu, on_cpu), (gpu, on_gpu)):
        method = ("linear", "cifar") if small else ("mlp", "moco_v2")
        settings = advice.settings
        assert (settings.head, settings.augmentation) == method
        assert settings.temperature == (0.1 if small else 0.2)
        reason = advice.reasons["image_size"]
        assert ("as far as" in reason) == (size < side)
        assert ("enlarged" in reason) == (size > side)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("folder", ["photos", None])
@pytest.mark.parametrize("num_images", [2, 9, 700, 60_000, 1_281_167])
def test_every_flag_has_a_reason_and_is_taken(
    machine, num_images, folder, on_gpu, tmp_path
):
    machine(FAST, on_gpu=on_gpu)
    found = found_of(num_images, folder and tmp_path / "m\u00fc 'x' <b>")
    advice = advise(found, 300)
    assert all(advice.reasons.values())
    path = tmp_path / "doctor.flags"
    path.write_text(_doctor_page.flag_file(found, advice), encoding="utf-8")
    values = absl_flags.FlagValues()
    _flags.define(DEFAULTS, values)
    values(["program", f"--flagfile={path}"])
    read = _flags.read(image_folder.FolderSettings, values)
    fitted = {*_settings.FITTED} - ({"image_size"} if not folder else set())
    assert fitted <= advice.reasons.keys()
    for name in advice.reasons:
        assert getattr(read, name) == getattr(advice.settings, name), name
    assert read.images == (str(found.folder) if folder else None)
    assert read.data_dir == found.data_dir


@pytest.mark.parametrize("name", ["two\nlines", " space ", "\udcff"])
def test_a_name_that_a_file_of_flags_cannot_hold_is_left_to_the_user(
    machine, name, tmp_path
):
    machine(FAST)
    found = found_of(5000, tmp_path / name)
    advice = advise(found)
    text = _doctor_page.flag_file(found, advice)
    assert "--images=" not in text and "# Also give --images" in text
    text.encode()


@pytest.mark.parametrize(
    ("speed", "minutes", "epochs"),
    [(1000, 10, 120), (1000, 1, 12), (8, 10, 1), (1e5, 60, 400)],
)
def test_epochs_are_as_many_as_there_is_time_for(
    machine, speed, minutes, epochs
):
    """39 steps of 128 images are an epoch of 4,992."""
    machine(dict.fromkeys((64, 32, 16), speed))
    advice = advise(found_of(5000), minutes=minutes)
    assert advice.settings.epochs == epochs


def test_where_reading_limits_a_wide_network_costs_nothing(machine):
    trained = machine({16: 21, 32: 20, 64: 18}, reading=0.04)
    assert advise(found_of(5000)).settings.width == 64
    machine({16: 21, 32: 20, 64: 2}, reading=0.04)
    assert advise(found_of(5000)).settings.width == 32
    assert trained == [16, 32, 64]


def test_where_reading_is_slow_one_network_is_tried(machine):
    trained = machine(FAST, reading=0.1)
    assert advise(found_of(5000)).settings.width == 64
    assert trained == [64]


def test_precision_is_that_of_the_run(machine, monkeypatch):
    monkeypatch.setattr(
        accelerators, "default_precision", lambda: "mixed_bfloat16"
    )
    machine(FAST, on_gpu=True)
    assert advise(found_of(5000)).settings.precision == "mixed_bfloat16"
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_too_little_time_for_an_epoch_is_said(machine):
    machine({16: 10})
    advice = advise(found_of(5000), minutes=1)
    assert advice.settings.epochs == 1
    assert advice.reasons["epochs"].startswith("one epoch takes 8.3 minutes")


def test_too_few_epochs_are_said_to_be_few(machine):
    """20,000 images a minute are an epoch in 30."""
    machine({16: 1000 / 3, 32: 1})
    reason = advise(found_of(600_000)).reasons["epochs"]
    assert reason == (
        "there is time for them in 60 minutes; 5 or more are better, and "
        "would take 2.5 hours"
    )


@pytest.mark.parametrize(
    ("reading", "limit"), [(0.1, "computing"), (0.7, "reading")]
)
def test_what_training_costs_is_said(
    machine, monkeypatch, capsys, tmp_path, reading, limit
):
    machine(FAST)
    monkeypatch.setattr(accelerators, "free_memory", lambda: 16e9)
    found = found_of(5000, tmp_path)
    advice = advise(found)
    cost = {
        "seconds_of_a_step": 1,
        "steps_of_an_epoch": 12,
        "seconds_of_an_epoch": 9,
        "seconds_of_reading_a_step": reading,
        "limited_by_reading": reading > 0.5,
        "bytes_of_memory": 1_500_000_000,
    }
    _doctor_page.print_advice(found, advice, cost, tmp_path / "a b.flags")
    page = capsys.readouterr().out
    words = " ".join(page.split())
    assert "9 seconds an epoch of 12 steps, 60 minutes for 400 epochs" in words
    assert "memory 1.5 GB, of 16.0 GB that are free" in words
    assert f"limit {limit}: " in words and f"{reading:.0%}" in words
    assert f"image_folder --flagfile='{tmp_path}/a b.flags'" in page
    cost["bytes_of_memory"] = None
    _doctor_page.print_advice(found, advice, cost, tmp_path / "x")
    assert "memory not known" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def tiny(photos, shallow_networks):
    """What was found in a folder, settings that fit it, and their model."""
    found = _doctor_look.at(photos)
    settings = dataclasses.replace(
        DEFAULTS,
        **{**programs.TINY, "backbone": "resnet18", "image_size": 8},
        momentum=0.9,
        learning_rate=0.01,
    )
    return found, settings, _model.build_model(settings, 29, 8)


@pytest.mark.slow
def test_steps_and_their_reading_are_measured(tiny, monkeypatch):
    monkeypatch.setattr(_doctor_trial, "_SECONDS", 0)
    found, settings, model = tiny
    step = _doctor_trial.step_seconds(settings, model, found)
    read = _doctor_trial.reading_seconds(settings, found.stream)
    assert 0 < step < 10 and 0 < read < 10
    assert int(model.optimizer.iterations) == 2


@pytest.mark.slow
def test_fewer_images_than_a_batch_are_repeated(tiny, monkeypatch):
    """Of large images, few are looked at in time."""
    monkeypatch.setattr(_doctor_trial, "_SECONDS", 0)
    found, settings, model = tiny
    encoded = found.stream.encoded
    few = found.stream._replace(
        encoded=lambda key: encoded(key).take(3), num_examples=3
    )
    found = found._replace(stream=few)
    assert _doctor_trial.step_seconds(settings, model, found) > 0
    assert int(model.optimizer.iterations) == 2


def test_a_data_set_is_trained_on_from_memory(tiny, monkeypatch):
    monkeypatch.setattr(_doctor_trial, "_SECONDS", 0)
    found, settings, model = tiny
    images = textures.draw(30, seed=0)[0][:, ::4, ::4]
    loaded = types.SimpleNamespace(images=images, num_examples=len(images))
    stream = found.stream._replace(num_examples=30)
    monkeypatch.setattr(
        type(stream), "load", lambda self, count: loaded, raising=True
    )
    found = found._replace(stream=stream, folder=None)
    assert _doctor_trial.step_seconds(settings, model, found) > 0
    assert int(model.optimizer.iterations) == 2


def test_memory_of_a_gpu_is_that_of_this_process(tiny, monkeypatch):
    monkeypatch.setattr(accelerators, "on_gpu", lambda: True)
    monkeypatch.setattr(accelerators, "peak_memory", lambda: 5)
    assert _doctor_trial.memory(*tiny) == 5


def test_a_rehearsal_reads_as_many_images_as_there_is_time_for(
    photos, monkeypatch, machine
):
    """Those that it does not hold are added, of eight pixels."""
    machine(FAST)
    found = _doctor_look.at(photos)
    settings = dataclasses.replace(DEFAULTS, batch_size=8, image_size=8)
    asked = []

    def rehearse(found, settings, count):
        asked.append(count)
        return 1000

    monkeypatch.setattr(_doctor_trial, "_rehearse", rehearse)
    for seconds, count in ((1e-4, 29), (0.25, 15)):
        slow = found._replace(seconds_of_image=seconds)
        needed = _doctor_trial.memory(slow, settings, None)
        assert needed == 1000 + (29 - count) * 3 * 8 * 8
        assert asked.pop() == count
    monkeypatch.setattr(accelerators, "peak_memory", lambda: 7)
    slow = found._replace(seconds_of_image=9)
    assert _doctor_trial.memory(slow, settings, None) == 7 + 29 * 3 * 8 * 8
    assert asked == []
    large = found._replace(num_images=10_000, seconds_of_image=1e-4)
    added = (5000 - 29) * 3 * 8 * 8
    assert _doctor_trial.memory(large, settings, None) == 1000 + added
    data_set = large._replace(folder=None)
    added = (10_000 - 29) * 3 * 8 * 8
    assert _doctor_trial.memory(data_set, settings, None) == 1000 + added


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_rehearsal_that_is_killed_is_an_error(photos, monkeypatch):
    monkeypatch.setattr(_doctor_trial, "run_program", killed)
    found = _doctor_look.at(photos)
    settings = dataclasses.replace(DEFAULTS, batch_size=8, image_size=8)
    with pytest.raises(ValueError, match="one of 29 images was killed"):
        _doctor_trial.memory(found, settings, None)


def test_a_rehearsal_leaves_nothing(tiny, monkeypatch):
    """Of what a run writes, and of the links to the images."""
    folders, seen = [], []

    class Here:
        def __init__(self, workers, context):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, work, settings, recipe):
            assert work is _doctor_trial.run_program
            folders.append(Path(settings.images).parent)
            seen.extend(Path(settings.images).rglob("*.png"))
            Path(settings.run_dir).mkdir()
            Path(settings.run_dir, "report.html").touch()
            return types.SimpleNamespace(result=lambda: 10**9)

    monkeypatch.setattr(
        _doctor_trial.concurrent.futures, "ProcessPoolExecutor", Here
    )
    found, settings, _ = tiny
    assert _doctor_trial.memory(found, settings, None) >= 10**9
    assert len(seen) == 28 and not folders[0].exists()


def test_findings_of_a_single_image_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor._threads, "share_cores", lambda: None)
    write(tmp_path / "one", 1)
    settings = doctor.DoctorSettings(
        images=str(tmp_path / "one"), out=str(tmp_path / "out")
    )
    with pytest.raises(ValueError, match="at least two images"):
        doctor.doctor(settings)
    kept = json.loads((tmp_path / "out/doctor.json").read_text())
    assert kept["images"]["looked_at"] == 1
    assert "1 to train on" in capsys.readouterr().out


def test_advice_is_kept_if_memory_cannot_be_measured(
    machine, photos, tmp_path, monkeypatch, capsys
):
    machine(FAST)
    monkeypatch.setattr(doctor._threads, "share_cores", lambda: None)

    def fail(*_):
        raise ValueError("no room")

    monkeypatch.setattr(_doctor_trial, "memory", fail)
    settings = doctor.DoctorSettings(images=photos, out=tmp_path / "out")
    with pytest.warns(UserWarning, match="Memory was not measured: no room"):
        doctor.doctor(settings)
    assert "--width=64" in (tmp_path / "out/doctor.flags").read_text()
    report = json.loads((tmp_path / "out/doctor.json").read_text())
    assert report["cost"]["bytes_of_memory"] is None
    assert "memory not known" in " ".join(capsys.readouterr().out.split())


def test_several_machines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    settings = doctor.DoctorSettings(images="x", out=str(tmp_path))
    with pytest.raises(ValueError, match="Unset it for this command"):
        doctor.doctor(settings)


def test_a_folder_that_cannot_be_written_to_is_known_first(
    photos, small_disk, monkeypatch
):
    disk, make_read_only = small_disk
    make_read_only()
    monkeypatch.setattr(doctor._threads, "share_cores", lambda: None)
    monkeypatch.delattr(_doctor_look, "at")
    settings = doctor.DoctorSettings(images=str(photos), out=str(disk))
    with pytest.raises(OSError, match="written to. Received.*ead-only"):
        doctor.doctor(settings)


@pytest.mark.parametrize("flag", ["images", "out"])
def test_missing_flags_are_errors(flag, tmp_path):
    given = {"images": str(tmp_path), "out": str(tmp_path / "out")}
    del given[flag]
    with pytest.raises(ValueError, match=f"--{flag} must be given"):
        doctor.doctor(doctor.DoctorSettings(**given))


@pytest.mark.slow
@pytest.mark.usefixtures("shallow_networks")
@pytest.mark.filterwarnings("ignore")
def test_the_doctor_and_the_run_it_advises(photos, tmp_path):
    """The folder's own problems do not prevent either.

    The rehearsal has run the whole program already, in its own process.
    """
    out = tmp_path / "a b"
    write(photos / "cats", 40, seed=9)
    flags = f"--images={photos}", f"--out={out}", "--minutes=0.1"
    done = programs.finish(programs.start_shallow("doctor", *flags))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == (
        "python -m moco_keras.recipes.image_folder "
        f"--flagfile='{out}/doctor.flags'"
    )
    report = json.loads((out / "doctor.json").read_text())
    assert report["advice"]["image_size"] == 32
    cost = report["cost"]
    assert cost["seconds_of_an_epoch"] > cost["seconds_of_a_step"] > 0
    assert cost["seconds_of_reading_a_step"] > 0
    assert 3e8 < cost["bytes_of_memory"] < 6e9
    run = tmp_path / "run"
    command = (
        "image_folder",
        f"--flagfile={out}/doctor.flags",
        f"--run_dir={run}",
        "--epochs=1",
    )
    programs.here(command, DEFAULTS, image_folder.read)
    settings = json.loads((run / "settings.json").read_text())["settings"]
    assert settings | report["advice"] | {"epochs": 1} == settings
