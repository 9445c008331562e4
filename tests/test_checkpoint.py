import keras
import numpy as np
import pytest

from moco_keras import Checkpoint


def train(model, images, epochs, folder):
    history = model.fit(
        images,
        batch_size=8,
        epochs=epochs,
        callbacks=[Checkpoint(folder)],
        verbose=0,
    )
    return history.epoch


def test_a_training_goes_on_as_if_never_interrupted(
    make_model, images, tmp_path
):
    def make():
        keras.utils.set_random_seed(2)
        return make_model(splits=2, symmetric=True)

    whole = make()
    assert train(whole, images, 4, tmp_path / "whole") == [0, 1, 2, 3]
    assert train(make(), images, 2, tmp_path / "parts") == [0, 1]
    keras.utils.set_random_seed(5)
    other = make_model(splits=2, symmetric=True)  # other weights and seeds
    assert train(other, images, 4, tmp_path / "parts") == [2, 3]
    for a, b in (
        (whole.variables, other.variables),
        (whole.optimizer.variables, other.optimizer.variables),
    ):
        for expected, value in zip(a, b, strict=True):
            np.testing.assert_array_equal(value, expected, expected.path)
    kept = {path.name for path in (tmp_path / "parts").glob("*.index")}
    assert kept == {"ckpt-3.index", "ckpt-4.index"}


def test_a_finished_training_is_left_as_it_is(make_model, images, tmp_path):
    model = make_model()
    train(model, images, 1, tmp_path)
    queue = model.queue.keys.numpy()
    again = make_model()
    assert train(again, images, 1, tmp_path) == []
    np.testing.assert_array_equal(again.queue.keys, queue)


@pytest.mark.parametrize(
    "settings", [{"queue_size": 40}, {"optimizer": keras.optimizers.Adam()}]
)
def test_another_model_is_refused(settings, make_model, images, tmp_path):
    train(make_model(), images, 1, tmp_path)
    with pytest.raises(ValueError, match="only with the model and the optim"):
        train(make_model(**settings), images, 2, tmp_path)
