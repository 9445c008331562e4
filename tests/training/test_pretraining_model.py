"""Another method fits in one file, and needs no change of the base."""

import keras
import numpy as np
import pytest
import reference
from moco_v3 import MoCoV3

from moco_keras import Checkpoint, optimizers


@pytest.fixture
def make(make_encoder):
    def make():
        keras.utils.set_random_seed(3)
        predictor = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
        model = MoCoV3(make_encoder(), predictor)
        model.compile(optimizer=optimizers.SGD(0.1))
        return model

    return make


def test_it_trains_all_models_with_the_loss_of_the_paper(make, images):
    model = make()
    views = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 8, 3))
    views = views.astype("float32")
    loss, _ = model.evaluate(tuple(views), batch_size=8, verbose=0)
    expected = 0.0
    for im_q, im_k in (views, views[::-1]):
        q = model.predictor(model.query_encoder(im_q)).numpy()
        k = model.key_encoder(im_k).numpy()
        q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
        for n in range(8):  # the other keys of the batch are the negatives
            others = np.delete(k, n, axis=0)
            expected += reference.info_nce(
                q[n : n + 1], k[n : n + 1], others, 0.5
            ).mean()
    assert loss == pytest.approx(expected / 8, rel=1e-5)
    before = [w.numpy() for w in model.weights]
    history = model.fit(images, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    moved = {
        w.path
        for w, old in zip(model.weights, before, strict=True)
        if not np.array_equal(w.numpy(), old)
    }
    for part in (model.query_encoder, model.key_encoder, model.predictor):
        assert {w.path for w in part.trainable_variables} <= moved


@pytest.mark.slow
def test_it_resumes_within_an_epoch(make, images, tmp_path):
    def train(model, folder, epochs=2, **kwargs):
        checkpoint = Checkpoint(folder, "1 step")
        return model.fit(
            images,
            batch_size=4,
            epochs=epochs,
            verbose=0,
            callbacks=[*kwargs.values(), checkpoint],
        )

    alone = make()
    train(alone, tmp_path / "alone")

    class Killed(Exception):
        pass

    def kill(batch, logs):
        if batch == 2:
            raise Killed

    dies = keras.callbacks.LambdaCallback(on_train_batch_end=kill)
    with pytest.raises(Killed):
        train(make(), tmp_path / "run", dies=dies)
    resumed = make()
    train(resumed, tmp_path / "run")
    for w, expected in zip(resumed.variables, alone.variables, strict=True):
        np.testing.assert_array_equal(w, expected, err_msg=w.path)


def test_it_is_saved_and_loaded(make, images, tmp_path):
    model = make()
    model.fit(images, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for w, expected in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(w, expected, err_msg=w.path)
    for each in (model, loaded):
        each.fit(images, batch_size=8, verbose=0)
    for w, expected in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(w, expected, err_msg=w.path)
