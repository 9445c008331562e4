import os
import signal
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from moco_keras import Checkpoint, distribution
from moco_keras.training.checkpoint_files import CheckpointFiles


def train(model, images, epochs, folder, *others, every="1 step", **kwargs):
    history = model.fit(
        images,
        epochs=epochs,
        callbacks=[Checkpoint(folder, every), *others],
        verbose=0,
        **{"batch_size": 4, **kwargs},
    )
    return history.epoch


class Watch(keras.callbacks.Callback):
    """Records calls and logs, and calls `act` after a given step."""

    def __init__(self, step=None, act=None):
        self.called, self.logged = [], []
        self.step, self.act = step, act

    def on_train_begin(self, logs=None):
        self.called.append("begin")

    def on_train_end(self, logs=None):
        self.called.append("end")

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.called.append((self.epoch, batch))
        if self.step == (self.epoch, batch):
            self.act()

    def on_epoch_end(self, epoch, logs=None):
        self.logged.append(logs)


class Died(Exception):
    """Stands for the end of a killed process."""


def die():
    raise Died


def assert_same_state(model, expected):
    for a, b in (
        (expected.variables, model.variables),
        (expected.optimizer.variables, model.optimizer.variables),
    ):
        for expected_value, value in zip(a, b, strict=True):
            np.testing.assert_array_equal(
                value, expected_value, expected_value.path
            )


def saved_steps(folder):
    """The steps of the checkpoints in a folder."""
    return sorted(int(path.stem) for path in folder.glob("*.index"))


@pytest.fixture
def make(make_model):
    """Makes equal models, or different ones with another `seed`."""

    def make(seed=2, **kwargs):
        keras.utils.set_random_seed(seed)
        return make_model(splits=2, **kwargs)

    return make


@pytest.fixture
def views(images):
    """Ready views, because they need less tracing."""
    return (images.astype("float32"), images[..., ::-1, :].astype("float32"))


@pytest.fixture
def slow_disk(monkeypatch):
    """Makes a write take longer than a step."""
    write = CheckpointFiles.write

    def slowly(self, *args):
        time.sleep(0.1)
        write(self, *args)

    monkeypatch.setattr(CheckpointFiles, "write", slowly)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_bit(
    make, images, tmp_path, slow_disk
):
    whole, watch = make(), Watch()
    train(whole, images, 3, tmp_path / "whole", watch)
    folder = tmp_path / "parts"
    # Within an epoch; at the end of one, which is repeated; in the next.
    for step, saved in (
        ((0, 1), [1]),
        ((1, 3), [5, 6, 7]),
        ((2, 0), [6, 7, 8]),
    ):
        with pytest.raises(Died):
            train(make(), images, 3, folder, Watch(step, die))
        assert saved_steps(folder) == saved
    other, rest = make(5), Watch()  # other random states
    assert train(other, images, 3, folder, rest) == [2]
    assert_same_state(other, whole)
    assert rest.called == ["begin", *[(2, i) for i in range(4)], "end"]
    assert rest.logged == watch.logged[2:]


@pytest.mark.slow
def test_callbacks_see_the_rest_of_an_epoch_as_an_epoch(make, views, tmp_path):
    whole, watch = make(), Watch()
    train(whole, views, 2, tmp_path / "whole", watch)
    with pytest.raises(Died):
        train(make(), views, 2, tmp_path / "parts", Watch((0, 2), die))
    other, rest = make(5), Watch()
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=0)
    stop.on_epoch_end = lambda epoch, logs: setattr(
        other, "stop_training", True
    )
    assert train(other, views, 2, tmp_path / "parts", rest, stop) == [0]
    assert rest.called == ["begin", (0, 2), (0, 3), "end"]
    assert rest.logged == watch.logged[:1]
    again = make(5)
    assert train(again, views, 2, tmp_path / "parts") == [1]
    assert_same_state(again, whole)


def test_a_data_set_resumes_within_its_epoch(make, views, tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices(views).batch(4)
    kwargs = {"batch_size": None}
    whole = make()
    train(whole, dataset, 2, tmp_path / "whole", **kwargs)
    with pytest.raises(Died):
        watch = Watch((1, 2), die)
        train(make(), dataset, 2, tmp_path / "parts", watch, **kwargs)
    other = make(5)
    train(other, dataset, 2, tmp_path / "parts", **kwargs)
    assert_same_state(other, whole)


def test_it_saves_by_steps_and_at_the_end(make, views, tmp_path):
    model = make()
    train(model, views, 2, tmp_path, every="3 steps")
    assert saved_steps(tmp_path) == [3, 6, 8]
    # Nothing is left to do.
    assert train(model, views, 2, tmp_path, every="3 steps") == []
    assert saved_steps(tmp_path) == [3, 6, 8]
    # A finished run may be extended.
    assert train(make(5), views, 3, tmp_path, every="100 steps") == [2]
    assert saved_steps(tmp_path) == [6, 8, 12]


def test_it_saves_by_minutes(make, views, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Watch()
    clock.on_train_batch_end = lambda batch, logs: now.__setitem__(
        0, now[0] + 50
    )
    train(make(), views, 2, tmp_path, clock, every="1.5 minutes")
    assert saved_steps(tmp_path) == [4, 6, 8]  # at 100, 200, 300 and 400 s


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_ends_training_after_the_step(
    make, views, tmp_path, number, error, capsys, ctrl_c
):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    watch = Watch((0, 1), lambda: os.kill(os.getpid(), number))
    with pytest.raises(error) as caught:
        train(make(), views, 2, tmp_path, watch, every="1 minute")
    said = capsys.readouterr().err
    assert "saved after 0 epochs and 2 steps" in said
    assert str(tmp_path) in said
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    assert watch.called[-1] == (0, 1)
    assert saved_steps(tmp_path) == [2]
    assert handlers == [
        signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)
    ]


def test_the_second_signal_acts_at_once(make, views, tmp_path, ctrl_c, capsys):
    def twice():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make(), views, 1, tmp_path, Watch((0, 1), twice))
    assert saved_steps(tmp_path) == [1]
    stopping, stopped = capsys.readouterr().err.strip().split("\n\n")
    assert stopping.startswith("Stopping after this step; a second ")
    assert f"before, {tmp_path / '000000001'}, is there" in stopped
    with pytest.raises(KeyboardInterrupt):
        train(make(), views, 1, tmp_path / "new", Watch((0, 0), twice))
    assert "Nothing is saved yet." in capsys.readouterr().err


def test_an_ignored_signal_stays_ignored(make, views, tmp_path, ctrl_c):
    ctrl_c(signal.SIG_IGN)
    watch = Watch((0, 1), lambda: signal.raise_signal(signal.SIGINT))
    assert train(make(), views, 1, tmp_path, watch) == [0]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_workers_ask_each_other_once_a_second(tmp_path, monkeypatch):
    """Ten steps a second; the other worker has to stop at the 35th."""
    now, asked = [0.0], []
    checkpoint = Checkpoint(tmp_path)
    checkpoint._strategy, checkpoint._steps = None, 0

    def total(counts, strategy):
        asked.append(checkpoint._steps)
        other = [checkpoint._steps >= 35, 0, counts[2], 1]
        return [own + its for own, its in zip(counts, other, strict=True)]

    monkeypatch.setattr(distribution, "all_reduce_sum", total)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoint.on_train_begin()
    stops = []
    for step in range(1, 61):
        now[0], checkpoint._steps = step / 10, step
        stop, due = checkpoint._agree_with_workers(False, False)
        assert not due
        if stop:
            stops.append(step)
    assert stops == [41, 51]
    assert asked == [1, 11, 21, 31, 41, 51]


def test_it_works_in_another_thread(make, views, tmp_path):
    """Signals cannot be handled there."""
    model = make()
    thread = threading.Thread(target=train, args=(model, views, 1, tmp_path))
    thread.start()
    thread.join()
    assert saved_steps(tmp_path) == [2, 3, 4]


def test_another_model_is_refused(make, views, tmp_path):
    train(make(), views, 1, tmp_path)
    other = make(queue_size=16)
    before = [v.numpy() for v in other.variables]
    with pytest.raises(ValueError, match="differ"):
        train(other, views, 2, tmp_path)
    for value, variable in zip(before, other.variables, strict=True):
        np.testing.assert_array_equal(value, variable)
    assert saved_steps(tmp_path) == [2, 3, 4]


def test_bad_data_is_refused_before_anything_is_restored(make, views, tmp_path):
    train(make(), views, 1, tmp_path)
    other = make(5)
    seeds = [v.numpy() for v in other.variables]
    with pytest.raises(ValueError, match="at most the number of images"):
        train(other, views, 2, tmp_path, batch_size=17)
    for value, variable in zip(seeds, other.variables, strict=True):
        np.testing.assert_array_equal(value, variable)


def test_a_failed_write_ends_training(make, views, tmp_path, monkeypatch):
    write, watch = CheckpointFiles.write, Watch()

    def fail(self, number, tensors):
        if number == 3:
            raise OSError("no room")
        write(self, number, tensors)

    monkeypatch.setattr(CheckpointFiles, "write", fail)
    with pytest.raises(OSError, match="no room"):
        train(make(), views, 2, tmp_path, watch)
    assert watch.called[-1] in [(0, 3), (1, 0)]
    assert saved_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    "every", ["", "often", "0 steps", "1.5 steps", "-1 minutes", "10", 5]
)
def test_bad_intervals_are_refused(every, tmp_path):
    with pytest.raises(ValueError, match='"500 steps" or "10 minutes"'):
        Checkpoint(tmp_path, every)


def test_the_chief_needs_a_folder(make, views):
    with pytest.raises(ValueError, match="`folder` must be a path"):
        train(make(), views, 1, None)
