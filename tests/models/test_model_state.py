import keras
import numpy as np
import pytest

import moco_keras
from moco_keras.models import model_state

register = keras.saving.register_keras_serializable(package="test_model_state")


@register
class Container(keras.layers.Layer):
    """Makes other layers, which its config does not mention."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [keras.layers.Normalization(), keras.layers.Dense(4)]

    def build(self, shape):
        for part in self.parts:
            part.build(shape)

    def call(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return inputs


@register
class Scale(keras.layers.Layer):
    """Keeps a number derived from a weight, and one that is not a weight."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(), trainable=False)
        self.factor = self.root = 1.0

    def set(self, weight, factor):
        self.weight.assign(weight)
        self.root, self.factor = weight**0.5, factor

    def call(self, inputs):
        return inputs * self.factor / self.root

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["factor"] = np.float32(self.factor)

    def load_own_variables(self, store):
        self.set(float(store["0"][()]), float(store["factor"][()]))


def make_encoder(seed):
    """An encoder with state of all kinds, which depends on the seed."""
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    pixels = rng.normal(seed, seed, (64, 8, 8, 3)).astype("float32")
    of_wrapped = rng.normal(seed, seed, (64, 8, 3)).astype("float32")
    normalize, within = keras.layers.Normalization(), Container()
    wrapped, scale = keras.layers.Normalization(), Scale()
    discretize = keras.layers.Discretization(num_bins=7, output_mode="int")
    x = inputs = keras.Input((8, 8, 3))
    x = normalize(x)
    x = keras.layers.TimeDistributed(wrapped)(x)
    x = within(x)
    nested = keras.Input(x.shape[1:])
    y = moco_keras.SplitBatchNormalization(2)(scale(nested))
    y = keras.Sequential([keras.layers.Conv2D(4, 3)])(y)
    x = keras.Model(nested, y)(x)
    normalize.adapt(pixels)
    wrapped.adapt(of_wrapped)
    within.parts[0].adapt(pixels)
    scale.set(4.0 * seed, 3.0)
    discretize.adapt(rng.normal(0, seed, 500).astype("float32"))
    whole = keras.ops.cast(discretize(x), "float32")
    x = keras.layers.Concatenate()([x, whole])  # gradients flow through `x`
    return moco_keras.build_encoder(keras.Model(inputs, x), 8, 4)


def assert_same(model, expected, images):
    np.testing.assert_allclose(
        model(images), expected(images), rtol=0, atol=1e-5
    )
    for found, wanted in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(found, wanted, wanted.path)


def test_a_key_encoder_starts_as_the_query_encoder(images):
    model = moco_keras.MoCo(make_encoder(2), queue_size=32)
    assert_same(model.key_encoder, model.query_encoder, images)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_an_encoder_in_float32_keeps_its_state(dtype, images):
    expected = make_encoder(2)
    keras.config.set_dtype_policy(dtype)
    encoder = make_encoder(2)
    found = model_state.with_float32(encoder)
    assert keras.config.dtype_policy().name == dtype
    dtypes = {layer.compute_dtype for layer in model_state.layers(found)}
    assert dtypes <= {"float32", "int32"}
    assert_same(found, expected, images)


def test_quantized_layers_stay_as_they_are(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    encoder = moco_keras.build_encoder("resnet6", 8, width=4, head="mlp")
    encoder.get_layer("head_hidden").quantize("int8")
    found = model_state.with_float32(encoder)
    names = {x.name: x.dtype_policy.name for x in model_state.layers(found)}
    assert names["stem_conv"] == "float32"
    assert names["head_hidden"] == "int8_from_mixed_bfloat16"
    np.testing.assert_allclose(
        found(images), encoder(images), rtol=0, atol=0.05
    )


def test_state_is_copied_between_encoders(images):
    source, target = make_encoder(2), make_encoder(3)
    discretize(target).bin_boundaries = discretize(source).bin_boundaries
    assert np.abs(source(images) - target(images)).max() > 0.1
    model_state.copy_state(source, target)
    assert_same(target, source, images)


def discretize(encoder):
    kind = keras.layers.Discretization
    (layer,) = (x for x in model_state.layers(encoder) if isinstance(x, kind))
    return layer


def test_the_table_of_a_lookup_is_copied():
    numbers = np.array([3, 5, 5, 7])
    source, target = keras.layers.IntegerLookup(), keras.layers.IntegerLookup()
    source.adapt(numbers)
    model_state.copy_state(source, target)
    np.testing.assert_array_equal(target(numbers), source(numbers))


def test_lora_factors_are_not_merged(rng):
    """Saving merges them, but the key encoder has to follow each."""
    source, target = (keras.layers.Dense(4, lora_rank=2) for _ in range(2))
    for layer in source, target:
        layer.build((None, 4))
    source.lora_kernel_b.assign(rng.normal(size=(2, 4)))
    before = source.get_weights()
    model_state.copy_state(source, target)
    for layer in source, target:
        for value, expected in zip(layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(value, expected)


def test_random_states_are_not_copied():
    source, target = keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)
    before = target.seed_generator.state.numpy()
    model_state.copy_state(source, target)
    np.testing.assert_array_equal(target.seed_generator.state, before)
    assert (source.seed_generator.state.numpy() != before).any()


def test_a_restored_model_is_the_one_that_was_saved(images, tmp_path):
    """The resuming program may adapt its layers to other images."""
    views = images.astype("float32"), images[::-1].astype("float32")
    models = []
    for seed in (2, 3):
        encoder = make_encoder(seed)
        discretize(encoder).bin_boundaries = [-1.0, 0.0, 1.0]  # not a variable
        model = moco_keras.MoCo(encoder, queue_size=32)
        model.compile(optimizer=moco_keras.optimizers.SGD(0.1))
        callback = moco_keras.Checkpoint(tmp_path)
        model.fit(views, batch_size=8, callbacks=[callback], verbose=0)
        models.append(model)
    saved, restored = models
    for name in ("query_encoder", "key_encoder"):
        assert_same(getattr(restored, name), getattr(saved, name), images)
