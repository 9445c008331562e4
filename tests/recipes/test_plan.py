"""Fitted defaults, estimates of memory and time, and how they are printed."""

import dataclasses
import itertools
import json
import re
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from programs import ROOT

import moco_keras
from moco_keras import data, distribution
from moco_keras.data import textures
from moco_keras.distribution import accelerators
from moco_keras.recipes import (
    _data,
    _defaults,
    _memory,
    _model,
    _pretrain,
    _progress,
    _settings,
    image_folder,
)

DEFAULTS = image_folder.DEFAULTS
STRATEGY = tf.distribute.get_strategy()


def test_without_a_head_projections_are_as_long_as_features():
    settings = _settings.Settings(
        backbone="resnet6", width=8, head="none", batch_size=64
    )
    fitting, model = _pretrain.build(settings, 1000, 32, STRATEGY)
    assert fitting.projection_dim == model.query_encoder.output_shape[1] == 32
    settings = dataclasses.replace(settings, head="linear")
    fitting, model = _pretrain.build(settings, 1000, 32, STRATEGY)
    assert fitting.projection_dim == model.query_encoder.output_shape[1] == 128


def test_without_a_head_no_group_is_a_single_image():
    settings = _settings.Settings(head="none", batch_size=64, bn_splits=32)
    assert _model.bn_splits_per_replica(settings, 1) == 32
    settings = dataclasses.replace(settings, bn_splits=64)
    with pytest.raises(ValueError, match="--bn_splits=64, --batch_size=64"):
        _model.bn_splits_per_replica(settings, 1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_fitted_defaults_are_consistent(replicas, on_gpu, symmetric):
    defaults = dataclasses.replace(DEFAULTS, symmetric=symmetric)
    previous = 0
    for images in (1, 2, 9, 30, 100, 766, 1999, 2000, 10_000, 10**5, 1_281_167):
        settings = dataclasses.replace(
            defaults,
            **_defaults.what_fits(defaults, images, on_gpu, replicas),
        )  # raises if the queue is too short
        batch_size = settings.batch_size
        assert batch_size % replicas == 0
        _model.bn_splits_per_replica(settings, replicas)
        assert previous <= batch_size <= 256
        previous = batch_size
        if images >= 2 * replicas:
            assert batch_size >= 2 * settings.bn_splits
        if images > max(32, 16 * replicas):
            assert batch_size <= images / 4
            assert settings.queue_size <= images / 2
        assert settings.queue_size <= 65536
        assert settings.learning_rate == pytest.approx(0.03 * batch_size / 256)


def test_fitted_defaults_for_766_photographs_and_for_imagenet():
    few, many = (
        _defaults.what_fits(DEFAULTS, images, on_gpu)
        for images, on_gpu in ((766, False), (1_281_167, True))
    )
    assert few == {
        "batch_size": 64,
        "bn_splits": 2,
        "queue_size": 256,
        "momentum": 0.99,
        "epochs": 400,
        "learning_rate": 0.0075,
    }
    assert many == {  # those of MoCo v2
        "batch_size": 256,
        "bn_splits": 8,
        "queue_size": 65536,
        "momentum": 0.999,
        "epochs": 200,
        "learning_rate": 0.03,
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"batch_size": 100}, {"bn_splits": 1, "queue_size": 256}),
        ({"batch_size": 300}, {"bn_splits": 3, "queue_size": 300}),
        ({"queue_size": 32}, {"batch_size": 32}),
        ({"queue_size": 32, "symmetric": True}, {"batch_size": 16}),
        ({"bn_splits": 5}, {"batch_size": 60}),
        ({"bn_splits": 40}, {"batch_size": 80}),
    ],
)
def test_the_other_defaults_fit_the_given_flags(given, expected):
    settings = dataclasses.replace(DEFAULTS, **given)
    assert expected.items() <= _defaults.what_fits(settings, 700, False).items()


@pytest.mark.parametrize("images", range(1, 40))
def test_few_images_get_a_batch_and_groups_that_fit(images):
    fits = _defaults.what_fits(DEFAULTS, images, False)
    assert min(8, images) / 2 < fits["batch_size"] <= images
    if images > 1:
        assert fits["batch_size"] >= 2 * fits["bn_splits"]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_epochs_change_smoothly_with_the_number_of_images(on_gpu):
    """With more images there are fewer epochs, but more steps in all."""
    previous = None
    for images in range(1, 250_000, 97):
        fits = _defaults.what_fits(DEFAULTS, images, on_gpu)
        if previous:
            least = min(0.9 * previous, previous - 1)
            assert least <= fits["epochs"] <= previous
        previous = fits["epochs"]
    seen = [
        _defaults.what_fits(DEFAULTS, images, on_gpu)["epochs"] * images
        for images in (100, 1_999, 2_000, 10_000, 19_999, 20_000, 10**6)
    ]
    assert sorted(seen, key=lambda x: round(x, -5)) == seen


@pytest.mark.parametrize(
    ("given", "images", "words"),
    [
        ({}, 30, "30 images. Lower --bn_splits"),
        ({"queue_size": 64}, 700, "700 images, --queue_size=64. Lower"),
    ],
)
def test_the_error_for_too_many_groups_names_its_flag(given, images, words):
    settings = dataclasses.replace(DEFAULTS, bn_splits=100, **given)
    with pytest.raises(ValueError, match=f"--bn_splits=100, {words}") as caught:
        _defaults.what_fits(settings, images, False)
    assert "--batch_size" not in str(caught.value)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7])
def test_the_default_groups_of_batch_norm_divide_any_batch(replicas):
    for batch_size in range(replicas, 1000, replicas):
        settings = dataclasses.replace(DEFAULTS, batch_size=batch_size)
        fits = _defaults.what_fits(settings, 10_000, False, replicas)
        settings = dataclasses.replace(settings, **fits)
        groups = _model.bn_splits_per_replica(settings, replicas)
        assert batch_size // replicas % groups == 0


def test_given_flags_are_kept(monkeypatch):
    given = {
        "backbone": "resnet34",
        "width": 8,
        "image_size": 40,
        "batch_size": 24,
        "bn_splits": 3,
        "queue_size": 25,
        "epochs": 7,
        "momentum": 0.5,
        "learning_rate": 1.0,
    }
    assert given.keys() == set(_settings.FITTED)
    for name, value in given.items():
        settings = dataclasses.replace(DEFAULTS, **{name: value})
        for complete in (_defaults.for_device, _of_images):
            settings = complete(settings, STRATEGY)
        assert getattr(settings, name) == value
        assert None not in [getattr(settings, n) for n in given]
    settings = _settings.Settings(precision="float32", projection_dim=8)
    assert _defaults.for_device(settings, STRATEGY) == settings
    assert _of_images(settings, STRATEGY) == settings


def _of_images(settings, strategy):
    return _defaults.for_images(settings, 700, strategy)


def test_the_docs_show_the_same_tables():
    text = (ROOT / "docs" / "training.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    for name in ("backbone", "width", "image_size"):
        values = [str(_defaults.OF_DEVICE[gpu][name]) for gpu in (False, True)]
        assert [f"`--{name}`", *values] in rows
    all_seen, limits = zip(
        *((f"{n:,}", f"{a}, {b}") for n, a, b in _defaults.OF_EPOCHS.values()),
        strict=True,
    )
    assert ["`--epochs`: images in all of them", *all_seen] in rows
    assert ["`--epochs`: at least, at most", *limits] in rows
    for fewer_than, *values in _defaults.OF_IMAGES:
        expected = [f"{value:g}" for value in values]
        first = "more" if fewer_than == np.inf else f"fewer than {fewer_than:,}"
        assert [first, *expected] in rows


def build(**changes):
    """Returns the given settings, the completed ones, and their model."""
    settings = dataclasses.replace(
        DEFAULTS,
        **{"width": 4, "backbone": "resnet18", "image_size": 16, **changes},
    )
    complete = _of_images(_defaults.for_device(settings, STRATEGY), STRATEGY)
    model = _model.build_model(complete, 700, complete.image_size)
    return settings, complete, model


@pytest.fixture
def memory(monkeypatch):
    """Sets the free memory; evaluations are counted as needing none."""
    monkeypatch.setattr(_memory, "_EVALUATED", 0)

    def set_to(free):
        monkeypatch.setattr(accelerators, "free_memory", lambda: free)

    return set_to


def test_the_memory_estimate_grows_with_each_setting(memory):
    _, settings, model = build()
    estimate = _memory.Memory.of(model, settings)
    base = estimate.needed(64)
    assert estimate.needed(128) > base
    for changes in (
        {"symmetric": True},
        {"width": 8},
        {"image_size": 24},
        {"queue_size": 65536},
        {"backbone": "resnet50"},
    ):
        _, settings, model = build(**changes)
        assert _memory.Memory.of(model, settings).needed(64) > base, changes
    keras.config.set_dtype_policy("mixed_bfloat16")
    _, settings, model = build()
    assert _memory.Memory.of(model, settings).needed(64) < base
    for images in (1, 10, 1000):
        need = estimate.needed(images)
        assert estimate.room_for(need) == images
        assert estimate.room_for(need - 2) == images - 1
    assert estimate.room_for(10) == 0
    with_evaluation = estimate._replace(evaluation=estimate.of_image * 100)
    for images in (1, 99, 101, 1000):
        need = with_evaluation.needed(images)
        assert need > estimate.needed(max(images, 100))
        assert with_evaluation.room_for(need + 2) == images
        assert with_evaluation.room_for(need - 2) == images - 1
    assert with_evaluation.room_for(estimate.needed(99)) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 4000),
        ("projection_dim", 20_000_000),
        ("queue_size", 2**31 - 1),
    ],
)
def test_a_model_too_large_for_memory_is_refused(name, value, memory):
    settings = dataclasses.replace(
        DEFAULTS,
        backbone="resnet18",
        image_size=96,
        **{"width": 64, name: value},
    )
    memory(None)
    _defaults.for_images(settings, 700, STRATEGY)
    memory(20e9)
    with pytest.raises(ValueError, match=rf"{value}.*\. Lower --{name}, which"):
        _defaults.for_images(settings, 700, STRATEGY)


@pytest.mark.parametrize("backbone", _memory._WEIGHTS)
def test_the_numbers_of_weights_are_right(backbone):
    made = moco_keras.build_encoder(backbone, 32, 1)
    counted = _memory._WEIGHTS[backbone]
    assert counted == pytest.approx(made.count_params(), rel=0.02)


def test_a_default_batch_shrinks_to_fit_memory(memory, capsys):
    asked, settings, model = build(image_size=96)
    asked = _defaults.for_device(asked, STRATEGY)
    estimate = _memory.Memory.of(model, settings)
    for free in (None, estimate.needed(64)):
        memory(free)
        fits = _defaults.for_memory(settings, asked, model, 700, STRATEGY)
        assert fits == settings
    assert capsys.readouterr().out == ""
    memory(estimate.needed(64) - 1)
    fits = _defaults.for_memory(settings, asked, model, 700, STRATEGY)
    assert fits == _of_images(
        dataclasses.replace(asked, batch_size=32), STRATEGY
    )
    assert "--batch_size=32 was chosen" in capsys.readouterr().out
    memory(estimate.needed(7))
    with pytest.raises(ValueError, match=r"free\. (Set|Lower) --"):
        _defaults.for_memory(settings, asked, model, 700, STRATEGY)


def test_a_given_batch_too_large_for_memory_is_refused(memory):
    asked, settings, model = build(
        image_size=96, batch_size=96, bn_splits=8, width=16
    )
    memory(_memory.Memory.of(model, settings).needed(50))
    with pytest.raises(
        ValueError,
        match="--batch_size=96, --backbone=resnet18, --width=16 and images of "
        r"96x96 pixels, which need about .* GB; .* GB are free. Set "
        "--batch_size=48, or lower --width",
    ):
        _defaults.for_memory(settings, asked, model, 700, STRATEGY)
    memory(1e6)
    with pytest.raises(ValueError, match="free. Lower --width or --view_s"):
        _defaults.for_memory(settings, asked, model, 700, STRATEGY)


def test_a_run_with_a_checkpoint_resumes_with_little_memory(
    memory, tmp_path, capsys
):
    """It cannot change the settings that the refusal asks to lower."""
    asked, settings, model = build(batch_size=96, run_dir=str(tmp_path))
    memory(1e6)
    with pytest.raises(ValueError, match="are free"):
        _defaults.for_memory(settings, asked, model, 700, STRATEGY)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-1.index").touch()
    fits = _defaults.for_memory(settings, asked, model, 700, STRATEGY)
    assert fits == settings
    assert "Warning: this run may need" in capsys.readouterr().err


def test_gpus_share_a_batch_but_not_their_memory(memory, monkeypatch):
    asked, settings, model = build(image_size=96, batch_size=64)

    class TwoReplicas:
        num_replicas_in_sync = 2

    monkeypatch.setattr(distribution, "is_chief", lambda _: True)
    monkeypatch.setattr(distribution, "broadcast", lambda x, _: x)
    monkeypatch.setattr(distribution, "num_workers", lambda _: 1)
    memory(_memory.Memory.of(model, settings).needed(41))
    with pytest.raises(ValueError, match="Set --batch_size=40"):
        _defaults.for_memory(settings, asked, model, 700, TwoReplicas())
    monkeypatch.setattr(accelerators, "on_gpu", lambda: True)
    fits = _defaults.for_memory(settings, asked, model, 700, TwoReplicas())
    assert fits == settings
    memory(_memory.Memory.of(model, settings).needed(20))
    with pytest.raises(ValueError, match="Set --batch_size=40"):
        _defaults.for_memory(settings, asked, model, 700, TwoReplicas())


def test_the_plan_of_a_training_run_is_printed(memory, capsys):
    memory(23_000_000_000)
    asked, settings, model = build(queue_size=1024, augmentation="moco_v2")
    images, labels = np.zeros((700, 16, 16, 3), "uint8"), np.zeros(700, int)
    whole = data.ImageSet(images, labels, ["a"], "photos 1234")
    images = _data.Images(whole, whole, whole)
    _progress.print_overview(asked, settings, model, images, STRATEGY)
    printed = capsys.readouterr().out
    for words in (
        "images   700 to train on, of photos 1234",
        "encoder  resnet18, width 4, cifar stem, mlp head: ",
        "views    16x16 pixels, 3 channels, moco_v2",
        "batch    64 images, learning rate 0.0075",
        "queue    1,024 keys",
        "epochs   400 of 10 steps, 4,000 in all",
        "GB, of 23.0 GB that are free",
        "longer than the 700 images",
        "--queue_size=256 would fit",
    ):
        assert words in printed
    (chosen,) = re.findall(r"^Chosen .*: (--.*)", printed, re.M)
    assert "--batch_size=64" in chosen and "--queue_size" not in chosen


def test_a_note_warns_of_too_few_images(memory, capsys):
    memory(23_000_000_000)
    asked = dataclasses.replace(
        DEFAULTS, width=4, image_size=16, symmetric=True
    )
    asked = _defaults.for_device(asked, STRATEGY)
    settings = _defaults.for_images(asked, 8, STRATEGY)
    model = _model.build_model(settings, 8, 16)
    images, labels = np.zeros((8, 16, 16, 3), "uint8"), np.zeros(8, int)
    whole = data.ImageSet(images, labels, ["a"], "photos")
    images = _data.Images(whole, whole, whole)
    _progress.print_overview(asked, settings, model, images, STRATEGY)
    printed = capsys.readouterr().out
    assert "Note: 8 images are too few to learn from" in printed
    # A shorter queue could not hold the keys of a step.
    assert "would fit" not in printed


def test_the_remaining_time_is_printed_once(monkeypatch, capsys, tmp_path):
    now = itertools.count(100.0, 6.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    pace = _progress.Pace(tmp_path)
    pace.set_params({"epochs": 200, "steps": 50})
    pace.on_epoch_begin(0)
    for batch in range(20):
        pace.on_train_batch_begin(batch)
        pace.on_train_batch_end(batch)
    printed = capsys.readouterr().out
    assert printed.count("Compiling the first step") == 1
    assert re.findall("About .*", printed) == [
        "About 5 minutes an epoch, 17 hours to the end, without evaluations. "
        "Ctrl-C saves and stops; the same command with --run_dir="
        f"{tmp_path} resumes."
    ]
    for epochs, words in ((3, "About 18 seconds an epoch, 18 s"), (2, "")):
        pace = _progress.Pace(tmp_path)  # resumes within a short epoch
        pace.set_params({"epochs": epochs, "steps": 3})
        pace.on_epoch_begin(1)
        for batch in (1, 2):
            pace.on_train_batch_end(batch)
        assert capsys.readouterr().out.strip().startswith(words)


@pytest.mark.usefixtures("shallow_networks")
def test_a_resumed_run_keeps_its_chosen_settings(tmp_path, monkeypatch, capsys):
    """Even on a device for which others would be chosen."""
    size = {"backbone": "resnet18", "width": 4, "image_size": 16}
    other = {"backbone": "resnet34", "width": 8, "image_size": 24}
    monkeypatch.setattr(_defaults, "OF_DEVICE", {False: size, True: other})
    images, labels = textures.draw(48, seed=0)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "images" / textures.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    settings = dataclasses.replace(
        DEFAULTS,
        images=str(tmp_path / "images"),
        run_dir=str(tmp_path / "run"),
        epochs=2,
        checkpoint_every="1 step",
    )

    def train():
        _pretrain.pretrain(settings, "image_folder", image_folder.read)

    def leave_a_checkpoint(settings, images, model, start, baselines, folder):
        """In place of training: leaves what makes a run resume."""
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "000000001.index").touch()

    monkeypatch.setattr(_pretrain, "_train", leave_a_checkpoint)
    train()
    assert "--width=4" in capsys.readouterr().out
    monkeypatch.setattr(accelerators, "on_gpu", lambda: True)
    monkeypatch.setattr(accelerators, "free_memory", lambda: None)
    train()
    record = json.loads((tmp_path / "run/settings.json").read_text())
    assert (
        size | {"batch_size": 8, "queue_size": 16, "epochs": 2}
    ).items() <= (record["settings"].items())
    assert "--width=4" in capsys.readouterr().out
