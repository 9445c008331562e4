"""Flags of the programs; each value is checked before anything is done."""

import dataclasses
import math
import os
import typing
from pathlib import Path

import pytest
from absl import flags

from moco_keras import distribution
from moco_keras.recipes import (
    _flags,
    _model,
    _pretrain,
    _settings,
    classify,
    dataset,
    doctor,
    embed,
    export,
    few_labels,
    finetune,
    image_folder,
)

PROGRAMS = {
    "cifar10": _settings.Settings(),
    "dataset": dataset.DEFAULTS,
    "image_folder": image_folder.DEFAULTS,
    "embed": embed.EmbedSettings(),
    "export": export.ExportSettings(),
    "few_labels": few_labels.FewLabelsSettings(),
    "finetune": finetune.FinetuneSettings(),
    "classify": classify.ClassifySettings(),
    "doctor": doctor.DoctorSettings(),
}
# Refused values, by flag.
WRONG = {
    **dict.fromkeys(
        (
            "train_examples",
            "test_examples",
            "channels",
            "width",
            "projection_dim",
            "bn_splits",
            "batch_size",
            "epochs",
            "steps_per_epoch",
            "queue_size",
            "knn_every",
            "image_size",
            "view_size",
            "draws",
            "steps",
        ),
        (0, -1, 2**31, 2**64),
    ),
    "version": (0, -1, 2**64),
    "seed": (-1, 2**32, 2**64),
    "min_area": (0.0, -0.1, 1.1, 2.0, math.nan, math.inf, -math.inf),
    "momentum": (-0.1, 1.1, math.nan, math.inf, -math.inf),
    "temperature": (0.0, -0.1, 1e-60, 1e60, math.nan, math.inf, -math.inf),
    "learning_rate": (0.0, -0.1, 1e60, math.nan, math.inf, -math.inf),
    "minutes": (-0.1, 1e60, math.nan, math.inf, -math.inf),
    "l2": (-0.1, 1e60, math.nan, math.inf, -math.inf),
    "checkpoint_every": ("0 steps", "1.5 steps", "-1 minute", "soon", "inf"),
}
RIGHT = {
    "seed": (0, 2**32 - 1),
    "version": (1, 20260101123456),
    "min_area": (1e-3, 1.0),
    "momentum": (0.0, 1.0),
    "temperature": (1e-6, 100.0),
    "learning_rate": (1e-9, 1e30),
    "l2": (0.0, 1.0),
    "knn_every": (1, 10**6),
    "checkpoint_every": ("1 step", "0.5 minutes"),
}


def kinds(defaults):
    """The type of each field, without None, by its name."""
    types = typing.get_type_hints(type(defaults))
    return {
        name: (typing.get_args(kind) or (kind,))[0]
        for name, kind in types.items()
    }


def parse(defaults, *given):
    values = flags.FlagValues()
    flags.DEFINE_string("flagfile", None, "", values)
    _flags.define(defaults, values)
    values(["program", *given])
    return _flags.read(type(defaults), values)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_number_has_bounds(program):
    defaults = PROGRAMS[program]
    numbers = [n for n, t in kinds(defaults).items() if t in (int, float)]
    assert set(numbers) <= WRONG.keys()
    for name in [*numbers, "checkpoint_every"]:
        if not hasattr(defaults, name):
            continue
        for value in WRONG[name]:
            with pytest.raises(ValueError) as error:
                parse(defaults, f"--{name}={value}")
            assert str(error.value).startswith(f"--{name} must be "), value
            assert f"Received: --{name}={value!r}." in str(error.value)
        for value in RIGHT.get(name, ()):
            assert getattr(parse(defaults, f"--{name}={value}"), name) == value


def test_the_doctor_must_be_given_time():
    with pytest.raises(ValueError, match="--minutes must be .* positive"):
        parse(doctor.DoctorSettings(), "--minutes=0")


@pytest.mark.parametrize("name", ["image_size", "view_size"])
def test_views_that_are_not_square_cannot_be_turned(name):
    words = rf"--turns needs views .*--{name}=8x16"
    with pytest.raises(ValueError, match=words):
        dataset.DatasetSettings(turns=True, **{name: "8x16"})
    square = dataset.DatasetSettings(turns=True, **{name: "8x8"})
    assert square.turns and getattr(square, name) == 8
    assert dataset.DatasetSettings(turns=True, image_size="8x16", view_size=8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--queue_size=100",), "--queue_size=100, 512 keys a step"),
        (("--symmetric", "--queue_size=512"), "=512, 1024 keys a step"),
        (("--train_examples=511",), "--train_examples=511, --batch_size=512"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        parse(_settings.Settings(), *given)


@pytest.mark.parametrize(
    ("batch_size", "bn_splits", "replicas", "words"),
    [
        (64, 3, 1, "--bn_splits=3, --batch_size=64. Give --bn_splits=1,"),
        (60, 8, 1, "--bn_splits=8, --batch_size=60. Give --bn_splits=4,"),
        (60, 8, 2, "--bn_splits=8, --batch_size=60, 2 devices. .*splits=4,"),
        (63, 1, 2, "--batch_size must be a multiple of the 2 devices"),
        (63, 9, 3, None),
        (64, 8, 16, None),
        (8, 8, 1, None),
    ],
)
def test_groups_and_devices_must_divide_a_batch(
    batch_size, bn_splits, replicas, words
):
    settings = _settings.Settings(batch_size=batch_size, bn_splits=bn_splits)
    if words is None:
        _model.bn_splits_per_replica(settings, replicas)
        return
    with pytest.raises(ValueError, match=words):
        _model.bn_splits_per_replica(settings, replicas)


def test_groups_are_checked_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(distribution, "chief_first", None)
    settings = _settings.Settings(bn_splits=3)
    with pytest.raises(ValueError, match="--bn_splits=3"):
        _pretrain.pretrain(settings, "recipe", read=None)


PATHS = {
    "cifar10": {"data_dir", "output_dir", "run_dir", "init_from"},
    "embed": {"encoder", "images", "out", "neighbours"},
    "export": {"model", "path"},
    "few_labels": {"run_dir", "encoder", "data", "data_dir", "out"},
    "finetune": {"encoder", "data", "data_dir", "labels", "out"},
    "classify": {"classifier", "encoder", "labelled", "images", "out"},
    "doctor": {"images", "data_dir", "out"},
}
PATHS["dataset"] = PATHS["cifar10"]
PATHS["image_folder"] = PATHS["cifar10"] | {"images", "labelled"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_path_may_begin_with_the_home_folder(program, monkeypatch, tmp_path):
    """On the command line, in a file of flags, or in Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    defaults = PROGRAMS[program]
    found = {
        field.name
        for field in dataclasses.fields(defaults)
        if field.metadata["path"]
    }
    assert found == PATHS[program]
    for name in found:
        expected = f"{tmp_path}/a.npz"
        (tmp_path / "flags").write_text(f"--{name}=~/a.npz\n")
        for given in (
            (f"--{name}=~/a.npz",),
            (f"--{name}", "~/a.npz"),
            (f"--flagfile={tmp_path}/flags",),
            ("--flagfile=~/flags",),
        ):
            assert getattr(parse(defaults, *given), name) == expected
        for value in ("~/a.npz", Path("~/a.npz"), Path(expected)):
            changed = dataclasses.replace(defaults, **{name: value})
            assert getattr(changed, name) == expected
        root = os.path.expanduser("~root")  # noqa: PTH111
        assert getattr(parse(defaults, f"--{name}=~root"), name) == root
        for value in ("a~", "a/~/b", "gs://bucket/run"):
            assert getattr(parse(defaults, f"--{name}={value}"), name) == value
        with pytest.raises(ValueError, match=f"--{name} must be .*'~nobody-"):
            parse(defaults, f"--{name}=~nobody-here/a")
        with pytest.raises(ValueError, match=f"--{name} must .*empty"):
            parse(defaults, f"--{name}=")
