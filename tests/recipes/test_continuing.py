"""Runs continued after their end, and runs that start from another."""

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import programs
import pytest
import soak
import tensorflow as tf
from replicas import free_ports, tf_config

import moco_keras
from moco_keras import data, plotting, schedules
from moco_keras.data import textures
from moco_keras.recipes import (
    _data,
    _history,
    _pretrain,
    _publishing,
    _run_files,
    _settings,
    _start,
)
from moco_keras.recipes import textures as textures_recipe

pytestmark = pytest.mark.usefixtures("shallow_networks")
SETTINGS = _settings.Settings(**programs.TINY)


def read(settings):
    images, labels = textures.draw(24, seed=0)
    whole = data.ImageSet(images, labels, list(textures.CLASSES), "textures")
    return _data.Images(whole, whole, whole)


def train(folder, **changes):
    settings = dataclasses.replace(SETTINGS, run_dir=str(folder), **changes)
    return _pretrain.pretrain(settings, "recipe", read)


def contents(folder, *patterns):
    return {
        path: path.read_bytes()
        for pattern in patterns
        for path in folder.glob(pattern)
        if path.is_file()
    }


def assert_same(folder, other):
    """Weights, optimizers, metrics and history, to the bit."""
    (weights, metrics), (others, expected) = map(
        programs.numbers, (folder, other)
    )
    assert metrics == expected
    assert len(weights) == len(others) > 3 * 20
    for (path, a), (_, b) in zip(weights, others, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)
    name = "history.csv"
    assert (folder / name).read_text() == (other / name).read_text()


def interrupt(monkeypatch, train_it, owner, name, when=lambda *args: True):
    """Interrupts a run at a call of the function `name` of `owner`."""
    original = getattr(owner, name)

    def stop(*args, **kwargs):
        if when(*args):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            train_it()


def test_pixels_that_cannot_be_evaluated_are_refused_first(tmp_path):
    """Not after the last epoch, when everything would be lost."""
    images = np.zeros((24, 8, 8, 1), "uint16")
    images[-1] = 5000
    whole = data.ImageSet(images, np.full(24, -1), [], "deep")

    def read(settings):
        some = whole._replace(images=images[:12])
        return _data.Images(some, some, whole)

    settings = dataclasses.replace(
        SETTINGS,
        run_dir=str(tmp_path / "run"),
        value_range="0,4095",
        augmentation="gray",
        channels=None,
    )
    with pytest.raises(ValueError, match="pixels from 0 to 5000"):
        _pretrain.pretrain(settings, "recipe", read)
    assert not (tmp_path / "run").exists()


RESULTS = ("*.json", "*.png", "model.keras", "encoder/1/**/*")


@pytest.mark.slow
def test_a_continued_run_equals_one_that_was_longer_from_the_start(
    tmp_path, monkeypatch, capsys
):
    """With a constant learning rate, since a schedule depends on the length."""
    monkeypatch.setattr(schedules, "EpochCosine", lambda rate, *_: rate)
    whole = train(tmp_path / "whole", epochs=4)
    run = train(tmp_path / "run")
    left = {path.name for path in run.iterdir()}
    checkpoints = run / "checkpoints"
    assert len([*checkpoints.glob("*.index")]) == 1
    before = contents(run, *RESULTS)

    def resume():
        return train(run, epochs=4)

    def in_third_epoch(_, epoch, logs):
        return epoch == 2

    capsys.readouterr()
    interrupt(
        monkeypatch,
        resume,
        _history.History,
        "on_epoch_end",
        when=in_third_epoch,
    )
    assert (
        "finished after 2 epochs, and continues to 4" in capsys.readouterr().out
    )
    assert before.items() <= contents(run, *RESULTS).items()

    def is_last(file, target):
        return target == run / "metrics.json"

    interrupt(monkeypatch, resume, Path, "replace", when=is_last)
    capsys.readouterr()
    assert resume() == run  # which moves the remaining results into place
    assert "are in their places" in capsys.readouterr().out
    assert len([*checkpoints.glob("*.index")]) == 1
    with pytest.raises(FileExistsError, match="finished, with 4 epochs"):
        resume()
    assert {path.name for path in run.iterdir()} == left
    assert before.items().isdisjoint(contents(run, "curves.png").items())
    assert_same(run, whole)
    versions = {path.name for path in (run / "encoder").iterdir()}
    assert versions == {"1", "2"}
    exported = contents(run, "encoder/1/**/*")
    assert exported == {path: before[path] for path in exported}
    record = json.loads((run / "settings.json").read_text())
    assert record["settings"]["epochs"] == 4
    assert record["continued_after_epochs"] == [2]
    training = json.loads((run / "encoder/2/encoder.json").read_text())
    assert training["training"]["settings"]["epochs"] == 4


@pytest.mark.slow
def test_a_failed_picture_does_not_fail_the_run(tmp_path, monkeypatch, capsys):
    """The run is complete, and says what failed."""

    def fail(*args):
        raise ValueError("ParseSyntaxException:\nprice_$10_$20")

    monkeypatch.setattr(plotting, "neighbours", fail)
    with pytest.raises(ValueError, match="Received: .*splits"):
        train(tmp_path / "run", bn_splits=3)  # does not divide the batch
    assert not (tmp_path / "run").exists()
    run = train(tmp_path / "run")
    stderr = capsys.readouterr().err
    assert "neighbours.png was not drawn: ParseSyntaxException:." in stderr
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "curves.png",
        "health.png",
        "map.json",
        "encoder",
        "history.csv",
        "logs",
        "metrics.json",
        "model.keras",
        "report.html",
        "settings.json",
        "timing.json",
        "views.png",
    }
    with pytest.raises(FileExistsError, match="finished, with 2 epochs"):
        train(run)
    # A damaged model is made again by doing what the error says.
    model = (run / "model.keras").read_bytes()
    (run / "model.keras").write_bytes(model[:-100])
    with pytest.raises(ValueError, match="move its metrics.json and model.ke"):
        train(tmp_path / "other", init_from=str(run / "model.keras"))
    assert not (tmp_path / "other").exists()
    numbers = json.loads((run / "metrics.json").read_text())
    for name in ("metrics.json", "model.keras"):
        (run / name).unlink()
    assert programs.numbers(train(run))[1] == numbers


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_run_starts_from_another(tmp_path, monkeypatch, capsys, seed):
    """Once it has a checkpoint, it no longer needs the other's file.

    If it is continued, it has the schedule of its new length.
    """
    first = tmp_path / "first.keras"
    build(32, projection_dim=None).save(first)
    file = tmp_path / "given.keras"
    shutil.copy(first, file)
    # With the seed of the other, it would begin with its weights anyway.
    given = {"init_from": str(file), "seed": seed + 1}
    whole = train(tmp_path / "whole", **given)
    assert f"Begins with the weights and the queue of {file}" in (
        capsys.readouterr().out
    )
    run = tmp_path / "run"

    def resume():
        return train(run, **given)

    interrupt(monkeypatch, resume, _history.History, "on_epoch_end")
    file.unlink()
    resume()
    assert_same(run, whole)
    record = json.loads((run / "settings.json").read_text())
    assert record["settings"]["init_from"] == str(file)
    with pytest.raises(ValueError, match=r"--init_from=None \(it began with /"):
        train(run, seed=seed + 1, epochs=3)
    train(run, **given, epochs=3)  # nor does a finished run
    model = keras.saving.load_model(run / "model.keras")
    schedule = model.optimizer._learning_rate
    assert (schedule.epochs, schedule.steps_per_epoch) == (3, 3)
    assert int(model.optimizer.iterations) == int(model.steps) == 3 * 3

    shutil.copy(first, file)
    with pytest.raises(ValueError, match="queue size 16, where.*ask for 24"):
        train(tmp_path / "new", **given, queue_size=24)
    assert not (tmp_path / "new").exists()
    shutil.rmtree(run / "checkpoints")
    before = contents(run, "**/*")
    with pytest.raises(
        FileNotFoundError, match="--init_from=.*model.keras and"
    ):
        train(run, **given, epochs=4)
    assert contents(run, "**/*") == before


# Shallow networks, trained for a minute that is one pass. The chief alone says
# how long that is.
_A_MINUTE = """
import json, os, runpy, shallow
from moco_keras.recipes import _minutes
_minutes._LEAST = 0
_minutes.plan = lambda *_: (1, 8)
if json.loads(os.environ["TF_CONFIG"])["task"]["index"]:
    del _minutes.plan
with shallow.networks():
    runpy.run_module("moco_keras.recipes.textures", run_name="__main__")
"""


@pytest.mark.slow
def test_devices_and_workers_start_from_another_run_and_continue(
    textures_dir, tmp_path
):
    """Only the chief has the file and the checkpoint, and writes."""

    def command(name, given, *more):
        return programs.smoke(
            textures_dir,
            f"--run_dir={tmp_path}/{name}",
            f"--output_dir={tmp_path}/runs",
            f"--init_from={given}/model.keras",
            "--precision=mixed_bfloat16",
            *more,
        )

    def train(command):
        read = _data.by_name("textures")
        programs.here(command, textures_recipe._DEFAULTS, read)

    def workers(start, given, *more):
        ports = free_ports(2)
        commands = [
            command("workers", given, *more),
            command("other", tmp_path / "gone", *more),
        ]
        processes = [
            start(*command, TF_CONFIG=tf_config(ports, i))
            for i, command in enumerate(commands)
        ]
        results = [programs.finish(process) for process in processes]
        for result in results:
            assert result.returncode == 0, result.stderr
        assert results[1].stdout == ""

    first = tmp_path / "first"
    begin = programs.smoke(textures_dir, f"--run_dir={first}", "--epochs=1")
    train([*begin, "--precision=mixed_bfloat16"])
    train(command("alone", first, "--epochs=1"))
    _, *of_devices = command(
        "mirrored", first, "--epochs=1", "--strategy=mirrored"
    )
    mirrored = programs.finish(
        programs.start_code(soak.TWO_DEVICES, *of_devices)
    )
    assert mirrored.returncode == 0, mirrored.stderr
    workers(
        lambda _, *flags, **env: programs.start_code(_A_MINUTE, *flags, **env),
        first,
        "--minutes=1",
    )

    found = {
        path.parent.name: json.loads(path.read_text())
        for path in tmp_path.glob("*/metrics.json")
    }
    losses = {name: x["history"][0]["loss"] for name, x in found.items()}
    assert losses.keys() == {"first", "alone", "mirrored", "workers"}
    for name in ("mirrored", "workers"):
        # Rounding differences grow through batch norm on few images.
        assert losses[name] == pytest.approx(losses["alone"], abs=0.01)
    assert losses["first"] != pytest.approx(losses["alone"], abs=0.1)
    alone, together = (
        {path.name for path in (tmp_path / name).iterdir()}
        for name in ("alone", "workers")
    )
    assert together == alone
    assert found["workers"]["knn_untrained"] == found["alone"]["knn_untrained"]

    shutil.rmtree(first)
    workers(programs.start_shallow, first, "--minutes=0", "--epochs=2")
    metrics = json.loads((tmp_path / "workers/metrics.json").read_text())
    assert [epoch["epoch"] for epoch in metrics["history"]] == [1, 2]
    assert (tmp_path / "workers/encoder/2/saved_model.pb").is_file()
    for name in ("other", "runs"):
        assert not (tmp_path / name).exists()


def build(image_size=8, queue_size=16, **kwargs):
    kwargs = {"width": 2, "projection_dim": 4, **kwargs}
    encoder = moco_keras.build_encoder("resnet18", image_size, **kwargs)
    return moco_keras.MoCo(encoder, queue_size=queue_size)


def test_a_run_starts_with_the_weights_and_queue_of_another(rng, tmp_path):
    """The rest of its state, such as the number of steps, is its own."""
    trained, model = build(), build()
    for variable in (*trained.variables, trained.steps):
        variable.assign(rng.integers(1, 9, variable.shape))
    trained.save(tmp_path / "m.keras")
    arrays = _start.read(tmp_path / "m.keras", model)
    before = [v.numpy() for v in model.saved_states()]
    strategy = tf.distribute.get_strategy()
    for given in (arrays, None):  # None as on a worker that is not the chief
        _start.give(model, given, strategy)
        for part in ("query_encoder", "key_encoder", "queue"):
            ours, theirs = (
                getattr(m, part).get_weights() for m in (model, trained)
            )
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
        for a, v in zip(before, model.saved_states(), strict=True):
            np.testing.assert_array_equal(a, v.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 16}, "image size 8x8, where the flags ask for 16x16"),
        ({"queue_size": 24}, "queue size 16, where the flags ask for 24"),
        ({"projection_dim": 5}, "projection dim 4, where the flags ask for 5"),
        ({"width": 3}, r"3, 3, 3, 2\), where.*3, 3, 3, 3\)"),
        ({"stem": "imagenet"}, r"3, 3, 3, 2\), where.*7, 7, 3, 2\)"),
        ({"head": "mlp"}, r"head_hidden/kernel none, where.*\(4, 4\)"),
    ],
)
def test_another_architecture_is_refused(changes, message, tmp_path):
    build().save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=message):
        _start.read(tmp_path / "m.keras", build(**changes))
    _start.read(tmp_path / "m.keras", build(bn_splits=2))


def test_files_other_than_models_are_refused(make_model, tmp_path):
    model = make_model()
    model.query_encoder.save(tmp_path / "encoder.keras")
    (tmp_path / "text.keras").write_text("a list of things to buy")
    for name, message in {
        "encoder.keras": "holds a Functional",
        "text.keras": "is damaged or something else: File is not a zip file",
    }.items():
        words = f"init_from must.*{name}.*{message}"
        with pytest.raises(ValueError, match=words):
            _start.read(tmp_path / name, model)
    for path in (tmp_path / "gone.keras", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"exists.*={path}"):
            _start.read(path, model)


def test_results_are_published_as_a_whole(tmp_path, monkeypatch):
    """After any interruption: the old ones, or finally all the new ones."""
    record = {"recipe": "r", "settings": {}, "data": {}}

    def begin(folder):
        (folder / "encoder" / "1").mkdir(parents=True)
        _run_files.write_json(folder / "settings.json", {"of": "old"})
        _run_files.write_json(folder / "metrics.json", {"of": "old"})
        _run_files.write_json(folder / "settings.continued.json", record)

    def write(folder):
        with _publishing.results(folder) as place:
            (place / "encoder" / "1").mkdir(parents=True)
            (place / "encoder" / "1" / "new").touch()
            _run_files.write_json(place / "metrics.json", {"of": "new"})

    def state(folder):
        return {
            str(path.relative_to(folder)): path.is_file() and path.read_text()
            for path in folder.rglob("*")
        }

    begin(tmp_path / "whole")
    write(tmp_path / "whole")
    expected = state(tmp_path / "whole")
    assert {"encoder/1", "encoder/2/new"} <= expected.keys()
    assert json.loads(expected["settings.json"]) == record
    calls = []

    def interrupted(function, at):
        def call(*args, **kwargs):
            calls.append(function)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    for at in range(1, 30):
        folder = tmp_path / str(at)
        begin(folder)
        before = state(folder)
        calls.clear()
        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "mkdir", "unlink"):
                function = getattr(Path, name)
                patch.setattr(Path, name, interrupted(function, at))
            try:
                write(folder)
            except KeyboardInterrupt:
                pass
            else:
                break
        ready = (folder / ".ready").exists()
        if not ready:
            assert before.items() <= state(folder).items()
            write(folder)
        _publishing.complete(folder)
        assert state(folder) == expected, at
    assert at > 8
