"""Runs that are told how long they may take."""

import dataclasses
import json
import time
import types
import weakref

import keras
import numpy as np
import programs
import pytest
from PIL import Image

from moco_keras import data, distribution
from moco_keras.data import textures
from moco_keras.recipes import (
    _data,
    _evaluation,
    _minutes,
    _pretrain,
    _settings,
    _trial,
    image_folder,
)
from moco_keras.system import startup

pytestmark = pytest.mark.usefixtures("shallow_networks", "no_pictures")
SETTINGS = _settings.Settings(**programs.TINY | {"epochs": 7})


def read(settings):
    images, labels = textures.draw(24, seed=0)
    whole = data.ImageSet(images, labels, list(textures.CLASSES), "textures")
    return _data.Images(whole, whole, whole)


def read_unlabeled(settings):
    return _data.Images(
        *(x._replace(labels=np.full(24, -1)) for x in read(settings)[:3])
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Image files. One is long and damaged, in a place that no scan reads."""
    place = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), "uint8")
    for i, image in enumerate([*textures.draw(23, seed=0)[0], noise]):
        Image.fromarray(image).save(place / f"{i}.png")
    contents = bytearray((place / "23.png").read_bytes())
    contents[12_500:13_000] = bytes(500)
    (place / "23.png").write_bytes(contents)
    return place


def train(folder, read=read, settings=SETTINGS, **changes):
    settings = dataclasses.replace(settings, run_dir=str(folder), **changes)
    return _pretrain.pretrain(settings, "recipe", read)


@pytest.mark.parametrize(
    ("seconds", "step", "evaluation", "every", "most", "expected"),
    [
        (100, 1, 0, 5, 10, (10, 10)),
        (99.5, 1, 0, 5, 10, (11, 9)),
        (109, 1, 0, 5, 10, (12, 9)),
        (79.9, 1, 0, 5, 10, (13, 6)),  # ten epochs at the least
        (100, 1, 8, 5, 10, (10, 7)),  # after 1, 5 and 10
        (100, 1, 9, 5, 10, (8, 9)),  # which would take more than a fourth
        (150.9, 1, 10, 5, 10, (11, 10)),  # after 1, 5, 10 and 11
        (150.9, 1, 10, 1, 10, (7, 10)),  # after each
        (150.9, 1, 10, None, 10, (14, 10)),  # at the end alone
        (17.9, 1, 10, 5, 10, (1, 7)),
        (34.9, 1, 10, 5, 10, (2, 7)),
        (203, 1, 100, 5, 50, (1, 50)),  # two need another evaluation
        (190, 1, 100, 5, 50, (1, 50)),
        (10.5, 1, 10, 5, 10, (1, 0)),  # no time for a step
        (-3, 1, 10, 5, 10, (1, 0)),
        (100, 200, 0, 5, 10, (1, 0)),
        (100, 20, 0, 5, 10, (1, 5)),  # fewer than ten steps in all
        (100, 10.1, 0, 5, 4, (3, 3)),
        (3600, 0.01, 0.1, 5, 4, (1014, 353)),  # more than a pass in each
    ],
)
def test_epochs_fill_the_time(seconds, step, evaluation, every, most, expected):
    epochs, steps = _minutes.plan(seconds, step, evaluation, every, most)
    assert (epochs, steps) == expected
    if not steps:
        return
    evaluations = 1
    if every:
        evaluations = sum(
            e in (1, epochs) or e % every == 0 for e in range(1, epochs + 1)
        )
    taken = epochs * steps * step + evaluations * evaluation
    assert 0 <= seconds - taken < 3 * step + evaluation + seconds / 1000


@pytest.mark.parametrize(
    ("steps", "seconds", "expected", "taken"),
    [
        ([0.1] * 99, 6, 0.1, [2, 9, 61]),
        ([0.1] * 99, 1.5, 0.1, [2, 9]),
        ([2] * 9, 6, 2, [2, 4]),
        ([4] * 5, 6, 4, [2]),
        ([13, 13], 6, 13, [2]),
        ([0.1, 0.1], 0, 0.1, [2]),
        # What was read while the first step was compiled takes no time: the
        # second trial is too long, but not ten times.
        ([0.1, 0.1, *[2.0] * 9], 6, 2.0, [2, 9]),
    ],
)
def test_a_trial_measures_what_follows_the_first_step(
    steps, seconds, expected, taken, monkeypatch
):
    now, counts, left = [100.0], [], iter(steps)

    def fit(epochs, steps_per_epoch, callbacks, verbose):
        now[0] += 20  # the first step is compiled
        for step in range(steps_per_epoch):
            callbacks[0].on_train_batch_end(step)
            now[0] += next(left, steps[-1])
        counts.append(steps_per_epoch)

    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(_trial, "time", clock)
    speed = _trial.measure(fit, seconds, distribution.strategy("none"))
    assert speed == pytest.approx((20, expected))
    assert counts == taken


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["array", "files"])
def test_a_run_of_minutes_is_the_run_of_the_epochs_that_it_chose(
    kind, folder, tmp_path, monkeypatch, capsys
):
    """The steps that were measured leave no trace."""

    def read_files(settings):
        stream = data.read_splits(folder)["train"]
        stream.damaged.tell = lambda *_: None  # or it warns
        return read(settings)._replace(train=stream)

    how = read, SETTINGS
    if kind == "files":
        how = (
            read_files,
            image_folder.FolderSettings(
                **dataclasses.asdict(SETTINGS), image_size=32
            ),
        )
    monkeypatch.setattr(_minutes, "_LEAST", 0)
    monkeypatch.setattr(_minutes, "plan", lambda *_: (3, 2))
    run = train(tmp_path / "run", *how, minutes=5)
    printed = capsys.readouterr().out
    assert "--steps_per_epoch=2" in printed and "3 of 2 steps" in printed
    recorded = json.loads((run / "settings.json").read_text())["settings"]
    chosen = {k: recorded[k] for k in ("minutes", "epochs", "steps_per_epoch")}
    assert chosen == {"minutes": 5, "epochs": 3, "steps_per_epoch": 2}
    with monkeypatch.context() as patch:
        patch.setattr(_minutes, "fit_epochs", None)
        with pytest.raises(FileExistsError, match="by --epochs, without --mi"):
            train(run, *how, minutes=5, epochs=9)
    other = train(tmp_path / "other", *how, epochs=3, steps_per_epoch=2)
    (weights, metrics), (others, expected) = map(programs.numbers, (run, other))
    assert metrics == expected
    for (path, a), (_, b) in zip(weights, others, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)
    for name in ["history.csv", *["damaged.csv"] * (kind == "files")]:
        assert (run / name).read_text() == (other / name).read_text()


@pytest.mark.slow
def test_a_resumed_run_keeps_the_epochs_that_it_chose(tmp_path, monkeypatch):
    monkeypatch.setattr(_minutes, "_LEAST", 0)
    monkeypatch.setattr(_minutes, "plan", lambda *_: (3, 2))
    end = _pretrain._history.History.on_epoch_end

    def stop(self, epoch, logs=None):
        end(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_pretrain._history.History, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", minutes=5)
    monkeypatch.setattr(_minutes, "fit_epochs", None)
    with pytest.raises(ValueError, match=r"--minutes=6.0 \(it began with 5"):
        train(tmp_path / "run", minutes=6.0)
    with pytest.raises(ValueError, match=r"--head=none \(it began with lin"):
        train(tmp_path / "run", minutes=5.0, head="none", backbone="resnet6")
    run = train(tmp_path / "run", minutes=5.0)
    metrics = json.loads((run / "metrics.json").read_text())
    assert [row["epoch"] for row in metrics["history"]] == [1, 2, 3]
    # It can be continued like any other run, also where flags give minutes.
    with pytest.raises(FileExistsError, match="--minutes=0 and more --epochs"):
        train(run, minutes=5.0, epochs=4)
    train(run, minutes=0, epochs=4)
    recorded = json.loads((run / "settings.json").read_text())["settings"]
    assert (recorded["epochs"], recorded["steps_per_epoch"]) == (4, 2)


@pytest.mark.parametrize(
    ("read", "expected"), [(read, [2, 3]), (read_unlabeled, [10, 1])]
)
def test_the_time_is_shared_by_evaluations_and_steps(
    read, expected, tmp_path, monkeypatch
):
    """Of 240 seconds, 120 are for steps of 10.3 and for evaluations of 12."""
    clock = types.SimpleNamespace(
        monotonic=lambda: 1000.0, perf_counter=time.perf_counter
    )
    monkeypatch.setattr(_minutes, "time", clock)
    monkeypatch.setattr(startup, "began", lambda: 900.0)
    monkeypatch.setattr(_minutes, "_seconds", lambda run: run() or 12.0)
    monkeypatch.setattr(
        _trial, "measure", lambda *_: _trial.Speed(start=5.0, step=10.0)
    )
    run = train(tmp_path / "run", read, minutes=4)
    recorded = json.loads((run / "settings.json").read_text())["settings"]
    assert [recorded[k] for k in ("epochs", "steps_per_epoch")] == expected


@pytest.mark.slow
def test_views_may_be_smaller_than_the_images(tmp_path, capsys):
    """Training works on these, and all else on whole images."""
    run = train(tmp_path / "run", epochs=2, view_size=16)
    assert "16x16 pixels, 3 channels" in capsys.readouterr().out
    model = keras.models.load_model(run / "model.keras")
    assert model.query_encoder.input_shape == (None, 32, 32, 3)
    assert list(model.view_size) == [16, 16]
    assert model.augmenter(np.zeros((2, 32, 32, 3))).shape == (2, 16, 16, 3)
    again = train(tmp_path / "again", epochs=2, view_size="16x16")
    assert programs.numbers(run)[1] == programs.numbers(again)[1]


@pytest.mark.slow
def test_the_model_that_was_measured_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(_minutes, "_LEAST", 0)
    built, alive, build = [], [], _pretrain._model.build_model

    def counted(*args):
        model = build(*args)
        built.append(weakref.ref(model))
        return model

    def fitter(*args):
        alive.append(sum(model() is not None for model in built))
        return fit(*args)

    fit = _pretrain.fitter
    monkeypatch.setattr(_pretrain._model, "build_model", counted)
    monkeypatch.setattr(_pretrain, "fitter", fitter)
    monkeypatch.setattr(_minutes, "plan", lambda *_: (1, 2))
    train(tmp_path / "run", minutes=5)
    assert len(built) == 2 and alive == [1, 1]


def test_too_few_minutes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_minutes, "_LEAST", 0)
    with pytest.raises(ValueError, match=r"--minutes .* Received: 0.1. Give"):
        train(tmp_path / "run", minutes=0.1)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--minutes must be a number that is"):
        dataclasses.replace(SETTINGS, minutes=-1.0)


def test_minutes_choose_the_steps_of_an_epoch(tmp_path):
    with pytest.raises(ValueError, match="--minutes=5 and --steps_per_epoch=2"):
        train(tmp_path / "run", minutes=5, steps_per_epoch=2)
    assert not (tmp_path / "run").exists()


def test_a_linear_probe_takes_of_the_time(monkeypatch):
    """The time of one on the untrained features, which is like the last."""
    strategy = distribution.strategy("none")
    images = read(SETTINGS)
    model = _pretrain.build(SETTINGS, 24, 32, strategy)[1]
    monkeypatch.setattr(_minutes, "_LEAST", 0)
    monkeypatch.setattr(_minutes, "_seconds", lambda run: run() or 12.0)
    left, probed = [], []
    monkeypatch.setattr(
        _minutes, "plan", lambda seconds, *_: left.append(seconds) or (1, 1)
    )
    monkeypatch.setattr(
        _evaluation,
        "linear_probe",
        lambda *given: probed.append(given),
    )
    clock = types.SimpleNamespace(
        monotonic=lambda: 1000.0, perf_counter=time.perf_counter
    )
    monkeypatch.setattr(_minutes, "time", clock)
    monkeypatch.setattr(
        _trial, "measure", lambda *_: _trial.Speed(start=5.0, step=10.0)
    )
    for labelled in (None, "folder"):
        settings = image_folder.FolderSettings(
            **dataclasses.asdict(SETTINGS) | {"minutes": 4.0},
            labelled=labelled,
        )
        _minutes.fit_epochs(
            settings, _pretrain.fitter, model, images, strategy, 900.0
        )
    assert left == [240 - 100 - 5 - 15, 240 - 100 - 5 - 15 - 12]
    ((of, features),) = probed
    assert of is images and [len(x) for x in features] == [24, 24]
