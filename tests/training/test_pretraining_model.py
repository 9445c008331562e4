"""Another method fits in one file, and needs no change of the base."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from keras import ops

from moco_keras import Checkpoint, augmentations, distribution, optimizers
from moco_keras.data.views import augment
from moco_keras.training.base import PretrainingModel
from moco_keras.training.two_encoders import unit_rows


class TwoAugmenters(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.first = augmentations.moco_v1(8, min_area=0.5)
        self.second = augmentations.cifar(8, min_area=0.5)


class MoCoV3(PretrainingModel):
    """Keys of the batch instead of a queue; a predictor; two augmenters.

    Reference:
        Algorithm 1 of [Chen et al., 2021](https://arxiv.org/abs/2104.02057).
    """

    def __init__(self, encoder, predictor, temperature=0.5, **kwargs):
        super().__init__(encoder, TwoAugmenters(), momentum=0.9, **kwargs)
        self.predictor, self.temperature = predictor, temperature
        self.add_state()

    @property
    def trained_models(self):
        return [self.query_encoder, self.predictor]

    def augment_twice(self, images):
        first, second = self.augmenter.first, self.augmenter.second
        return augment(first, images), augment(second, images)

    def traced_settings(self):
        return *super().traced_settings(), self.temperature

    def train_step(self, data):
        views = self.training_views(data)
        keys = [distribution.all_gather(self.keys_of(x, True)) for x in views]
        with tf.GradientTape() as tape:
            losses, correct = self.compared(views, keys, training=True)
            loss = ops.mean(losses)
            scaled_loss = self.scale_loss(loss)
        self.apply_gradients(tape, scaled_loss)
        return self.step_logs(loss, correct)

    def losses_of_views(self, im_1, im_2):
        views = im_1, im_2
        keys = [self.keys_of(x, False) for x in views]
        return self.compared(views, keys, training=False)

    def keys_of(self, images, training):
        return unit_rows(self.key_encoder(images, training=training))

    def compared(self, views, keys, training):
        losses, correct = 0.0, []
        for images, k in zip(views, keys[::-1], strict=True):
            q = self.query_encoder(images, training=training)
            q = unit_rows(self.predictor(q, training=training))
            logits = q @ ops.transpose(k) / self.temperature
            own = tf.range(tf.shape(q)[0])
            losses += keras.losses.sparse_categorical_crossentropy(
                own, logits, from_logits=True
            )
            correct.append(tf.argmax(logits, 1, "int32") == own)
        return losses, ops.cast(ops.concatenate(correct), "float32")


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
