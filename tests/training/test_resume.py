"""A run that resumes with other batches ends correctly or is refused."""

import itertools
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from moco_keras import Checkpoint
from moco_keras.training import resume

IMAGES, BATCH, STEPS = 16, 4, 4  # of the interrupted run


class Died(Exception):
    """Stands for the end of a killed process."""


class Steps(keras.callbacks.Callback):
    """Records the steps, and dies after one of them."""

    def __init__(self, dies_after=None):
        super().__init__()
        self.dies_after, self.seen = dies_after, []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((self.epoch, batch))
        assert len(self.seen) < 100, "it never ends"
        if self.seen[-1] == self.dies_after:
            raise Died


@pytest.fixture
def make(make_model):
    def make(seed=2):
        keras.utils.set_random_seed(seed)
        return make_model(ready_views=True)

    return make


@pytest.fixture
def views(images):
    return images.astype("float32"), images[..., ::-1, :].astype("float32")


def train(model, data, folder, dies_after=None, every="1 step", **kwargs):
    steps = Steps(dies_after)
    kwargs = {"batch_size": BATCH, "epochs": 2, "verbose": 0, **kwargs}
    callbacks = [Checkpoint(folder, every), steps]
    if dies_after:
        with pytest.raises(Died):
            model.fit(data, callbacks=callbacks, **kwargs)
    else:
        model.fit(data, callbacks=callbacks, **kwargs)
    return steps.seen


def assert_same(model, expected):
    for a, b in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(a, b, b.path)


def part(views, count):
    return tuple(x[:count] for x in views)


# Batch size, images, and steps an epoch of the resumed run. The first are those
# of the interrupted one.
CHANGES = list(itertools.product([4, 8], [16, 12], [None, 3]))


def test_within_an_epoch_the_same_batches_resume(make, views, tmp_path):
    train(make(), views, tmp_path, dies_after=(0, 2))
    done = train(make(5), views, tmp_path, epochs=3)
    # The last step is repeated if its checkpoint was not written.
    whole = [(e, b) for e in range(3) for b in range(STEPS)]
    assert done in (whole[2:], whole[3:])


def test_within_an_epoch_other_batches_are_refused(make, views, tmp_path):
    train(make(), views, tmp_path, dies_after=(0, 2))
    model = make(5)
    before = [v.numpy() for v in model.variables]
    for batch_size, images, steps_per_epoch in CHANGES[1:]:
        words = []
        if batch_size != BATCH:
            words.append(f"batch_size: {batch_size} (it began with {BATCH})")
        if images != IMAGES:
            words.append(f"images: {images} (it began with {IMAGES})")
        now = steps_per_epoch or images // batch_size
        if now != STEPS:
            words.append(f"batches in an epoch: {now} (it began with {STEPS})")
        with pytest.raises(ValueError, match=re.escape(", ".join(words))):
            train(
                model,
                part(views, images),
                tmp_path,
                batch_size=batch_size,
                steps_per_epoch=steps_per_epoch,
            )
        for value, variable in zip(before, model.variables, strict=True):
            np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize(
    "changes",
    [CHANGES[:1], pytest.param(CHANGES[1:], marks=pytest.mark.slow)],
    ids=["none", "all"],
)
def test_between_epochs_other_batches_begin_a_new_pass(
    make, views, tmp_path, changes
):
    train(make(), views, tmp_path / "begun", epochs=1, every="99 steps")
    for number, (batch_size, images, steps_per_epoch) in enumerate(changes):
        folder = shutil.copytree(tmp_path / "begun", tmp_path / str(number))
        model = make(5)
        steps = steps_per_epoch or images // batch_size
        done = train(
            model,
            part(views, images),
            folder,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            epochs=3,
        )
        assert done == [(e, b) for e in (1, 2) for b in range(steps)]
        taken = STEPS + 2 * steps
        assert int(keras.ops.convert_to_numpy(model.steps)) == taken


def test_a_finished_run_says_so(make, views, tmp_path, capsys):
    train(make(), views, tmp_path)
    assert "Nothing is left" not in capsys.readouterr().err
    for epochs in (2, 1):
        assert train(make(), views, tmp_path, epochs=epochs) == []
        said = capsys.readouterr().err
        assert f"2 epochs are done. Received: epochs={epochs}." in said


@pytest.mark.slow
def test_earlier_training_does_not_count(make, views, tmp_path):
    """Three steps are trained before the run that is interrupted."""

    def begin(seed=2):
        model = make(seed)
        model.fit(views, batch_size=8, steps_per_epoch=3, verbose=0)
        return model

    whole = begin()
    train(whole, views, tmp_path / "whole")
    train(begin(), views, tmp_path / "parts", dies_after=(1, 1))
    other = begin(5)
    train(other, views, tmp_path / "parts")
    assert_same(other, whole)


def batched(views, count=IMAGES):
    return tf.data.Dataset.from_tensor_slices(part(views, count)).batch(
        BATCH, drop_remainder=True
    )


DATA_SETS = {
    "endless": lambda x: batched(x).repeat(),
    "of more batches than an epoch": batched,
    "of fewer batches than an epoch": lambda x: batched(x, 8),
    "of unknown length": lambda x: batched(x).filter(lambda *x: True),
}


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize(
    "deaths",
    [
        [(1, 2)],
        pytest.param([(0, 1), (1, 0), (2, 1)], marks=pytest.mark.slow),
    ],
    ids=["one", "others"],
)
def test_a_data_set_resumes_where_it_was(make, views, tmp_path, name, deaths):
    """Epochs of three batches take the next ones of the data set."""
    dataset = DATA_SETS[name](views)
    kwargs = {"batch_size": None, "steps_per_epoch": 3, "epochs": 3}
    whole = make()
    assert len(train(whole, dataset, tmp_path / "whole", **kwargs)) == 9
    for number, died in enumerate(deaths):
        folder = tmp_path / str(number)
        train(make(), dataset, folder, dies_after=died, **kwargs)
        other = make(5)
        train(other, dataset, folder, **kwargs)
        assert_same(other, whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras's
@pytest.mark.parametrize("known", [True, False])
def test_a_run_that_dies_twice_at_a_last_batch_resumes(
    make, views, tmp_path, known
):
    dataset = batched(views)
    if not known:
        dataset = dataset.filter(lambda *x: True)
    kwargs = {"batch_size": None, "epochs": 3}
    whole = make()
    train(whole, dataset, tmp_path / "whole", **kwargs)
    folder = tmp_path / "parts"
    for died in ((0, 3), (1, 3)):
        train(make(), dataset, folder, dies_after=died, **kwargs)
    other = make(5)
    train(other, dataset, folder, **kwargs)
    assert_same(other, whole)


class Batches(keras.utils.PyDataset):
    """Keras's own kind of data set, which cannot skip batches."""

    def __init__(self, views):
        super().__init__()
        self.views = views

    def __len__(self):
        return STEPS

    def __getitem__(self, number):
        rows = slice(number * BATCH, (number + 1) * BATCH)
        return tuple(x[rows] for x in self.views)


@pytest.mark.parametrize(
    ("start", "epochs", "steps", "expected"),
    [
        # From the beginning, and from an epoch that has not begun.
        ((0, 0), 3, 4, [((0, 0), 3, 4)]),
        ((2, 0), 3, 4, [((2, 0), 3, 4)]),
        # The rest of an epoch, and then the others.
        ((0, 1), 3, 4, [((0, 1), 1, 3), ((1, 0), 3, 4)]),
        ((1, 3), 3, 4, [((1, 3), 2, 1), ((2, 0), 3, 4)]),
        # The rest of the last epoch.
        ((2, 1), 3, 4, [((2, 1), 3, 3)]),
        # Epochs of an unknown number of batches.
        ((0, 0), 2, None, [((0, 0), 2, None)]),
        ((0, 5), 2, None, [((0, 5), 1, None), ((1, 0), 2, None)]),
        # Nothing is left; the run may be longer than is now requested.
        ((3, 0), 3, 4, [((3, 0), 3, 4)]),
        ((4, 0), 3, 4, [((4, 0), 3, 4)]),
        ((3, 2), 3, 4, [((3, 0), 3, 4)]),
    ],
)
def test_what_is_left_of_a_run(start, epochs, steps, expected):
    stretches = resume.stretches(resume.Position(*start), epochs, steps)
    assert stretches == expected
    trained = [
        (epoch, batch)
        for stretch in stretches
        for epoch in range(stretch.start.epoch, stretch.epochs)
        for batch in range(stretch.steps or 0)
    ]
    left = [(e, b) for e in range(epochs) for b in range(steps or 0)]
    assert len(trained) == sum(x >= start for x in left)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [None, STEPS])
def test_a_generator_restarts_its_epoch(make, views, tmp_path, steps):
    """The means of the epoch restart, too."""
    data, kwargs = Batches(views), {"batch_size": None}
    kwargs["steps_per_epoch"] = steps
    train(make(), data, tmp_path, dies_after=(1, 1), **kwargs)
    model, losses = make(5), []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    steps_of_epoch = Steps()
    history = model.fit(
        data,
        epochs=2,
        steps_per_epoch=steps,
        callbacks=[Checkpoint(tmp_path, "1 step"), steps_of_epoch, callback],
        verbose=0,
    )
    assert steps_of_epoch.seen == [(1, batch) for batch in range(STEPS)]
    # Keras logs the mean of the batches so far.
    assert history.history["loss"] == [losses[-1]]
    own = np.diff(np.array([0, *losses]) * np.arange(STEPS + 1))
    np.testing.assert_allclose(own.mean(), losses[-1], rtol=1e-5)


@pytest.mark.slow
def test_moving_averages_of_weights_are_taken_once(make, views, tmp_path):
    """Keras assigns them to the weights at the end of `fit`."""

    def averaging(seed=2):
        model = make(seed)
        model.compile(keras.optimizers.SGD(0.1, use_ema=True))
        return model

    whole, resumed = averaging(), averaging(5)
    train(whole, views, tmp_path / "whole")
    train(averaging(), views, tmp_path / "parts", dies_after=(0, 1))
    train(resumed, views, tmp_path / "parts")
    assert_same(resumed, whole)
    assert "finalize_variable_values" not in vars(resumed.optimizer)


@pytest.mark.slow
def test_on_train_end_gets_the_last_logs(make, views, tmp_path):
    train(make(), views, tmp_path, dies_after=(0, 1))
    heard = []
    callback = keras.callbacks.LambdaCallback(on_train_end=heard.append)
    callbacks = [Checkpoint(tmp_path), callback]
    history = (
        make()
        .fit(views, batch_size=BATCH, epochs=2, callbacks=callbacks, verbose=0)
        .history
    )
    assert [logs["loss"] for logs in heard] == history["loss"][-1:]


def test_two_checkpoints_are_refused(make, views, tmp_path):
    callbacks = [Checkpoint(tmp_path / "a"), Checkpoint(tmp_path / "b")]
    with pytest.raises(ValueError, match="one `Checkpoint`.*Received: 2"):
        make().fit(views, callbacks=callbacks, verbose=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras's
@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda x: batched(x).repeat(), "`steps_per_epoch` must be given"),
        (lambda x: batched(x).take(0), "Received one that is empty"),
        (lambda x: batched(x, 3), "Received one that is empty"),
        (
            lambda x: batched(x).filter(lambda *x: False),
            "had none for epoch 1",
        ),
        (lambda x: part(x, 0), "batch_size=4, 0 images"),
        (lambda x: None, "Received: NoneType"),
    ],
    ids=["endless", "empty", "no full batch", "filtered", "arrays", "nothing"],
)
def test_an_epoch_must_have_batches_and_an_end(make, views, form, message):
    data = form(views)
    size = None if isinstance(data, tf.data.Dataset) else BATCH
    with pytest.raises(ValueError, match=message):
        make().fit(data, batch_size=size, verbose=0)
