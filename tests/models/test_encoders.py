import re
import warnings
from unittest import mock

import keras
import numpy as np
import pytest
import pytorch
import reference
import tensorflow as tf
from fixtures.drawing import draw_weights
from keras.src.applications import efficientnet

import moco_keras
from moco_keras import backbone, build_encoder, pixel_format
from moco_keras.models import encoders, resnet

pytestmark = pytest.mark.usefixtures("accelerator")

# Parameters of torchvision's models, without their last layer.
RESNET18, RESNET34, RESNET50 = 11_176_512, 21_284_672, 23_508_032


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [
        ("resnet18", RESNET18, 512),
        ("resnet34", RESNET34, 512),
        ("resnet50", RESNET50, 2048),
    ],
)
def test_parameters_are_as_many_as_torchvisions(name, parameters, dim):
    encoder = build_encoder(name, image_size=224)
    trainable = sum(np.prod(v.shape) for v in encoder.trainable_variables)
    assert trainable == parameters + dim * 128 + 128
    assert backbone(encoder).output_shape == (None, dim)
    maps = [
        layer.output.shape[1:3]
        for layer in encoder.layers
        if "block" in layer.name
    ]
    assert maps[0] == (56, 56)
    assert maps[-1] == (7, 7)


def test_small_images_get_the_cifar_stem():
    encoder = build_encoder("resnet18", image_size=32, width=8)
    assert encoder.get_layer("stage1_block1_conv1").output.shape[1:3] == (
        32,
        32,
    )
    assert encoder.get_layer("stage4_block2_conv2").output.shape == (
        None,
        4,
        4,
        64,
    )


def test_encoder_normalizes_pixels_itself(images):
    encoder = build_encoder("resnet18", image_size=8, width=4)
    normalize = keras.Model(
        encoder.input, encoder.get_layer("normalization").output
    )
    mean = np.array([0.4914, 0.4822, 0.4465])
    std = np.array([0.2023, 0.1994, 0.2010])
    np.testing.assert_allclose(
        normalize(images), (images / 255 - mean) / std, rtol=1e-4, atol=1e-5
    )


def carry_over(encoder, names, shapes):
    """Gives the encoder the weights of the fixture's module."""
    assert len(names) == len(encoder.weights)
    shapes = [tuple(int(n) for n in shape.split()) for shape in shapes]
    drawn = draw_weights(dict(zip(names, shapes, strict=True)))
    for name, weight in drawn:
        variable = pytorch.keras_variable(encoder, name)
        variable.assign(pytorch.to_keras(weight))


@pytest.mark.parametrize(
    ("case", "backbone", "size", "settings"),
    [
        ("cifar_resnet18", "resnet18", 32, {}),
        ("resnet18", "resnet18", 96, {}),
        ("resnet50", "resnet50", 96, {"head": "mlp"}),
    ],
)
def test_encoders_match_torchvision(case, backbone, size, settings):
    expected = pytorch.part(pytorch.load("encoders"), case)
    encoder = build_encoder(backbone, size, **settings)
    trainable = sum(np.prod(v.shape) for v in encoder.trainable_variables)
    assert trainable == expected["parameters"]
    names = expected["names"]
    carry_over(encoder, names, expected["shapes"])
    images = np.random.RandomState(6).randint(0, 256, (4, size, size, 3))
    inference = encoder(images, training=False)
    np.testing.assert_allclose(inference, expected["inference"], atol=1e-4)
    training = encoder(images, training=True)
    np.testing.assert_allclose(training, expected["training"], atol=1e-4)
    statistics = [
        pytorch.keras_variable(encoder, name)[:8]
        for name in names
        if name.endswith(("running_mean", "running_var"))
    ]
    np.testing.assert_allclose(
        statistics, expected["statistics"], rtol=1e-4, atol=1e-4
    )


def test_the_small_resnet_pools_before_its_blocks(images):
    """Against TensorFlow's own operations, with weights that are all used."""
    encoder = build_encoder("resnet6", 8, 5, width=4)
    names = [weight.path for weight in encoder.weights]
    drawn = draw_weights(
        {n: tuple(w.shape) for n, w in zip(names, encoder.weights, strict=True)}
    )
    for weight, (name, value) in zip(encoder.weights, drawn, strict=True):
        if name.endswith("moving_variance"):
            value = np.abs(value) + 0.5
        weight.assign(value)

    def conv(x, name):
        kernel = encoder.get_layer(name).kernel.value
        return tf.nn.conv2d(x, kernel, 1, "SAME")

    def norm(x, name):
        layer = encoder.get_layer(name)
        scale = layer.gamma / np.sqrt(layer.moving_variance + 1e-5)
        return (x - layer.moving_mean) * scale + layer.beta

    normalize = keras.Model(
        encoder.input, encoder.get_layer("normalization").output
    )
    x = tf.nn.relu(norm(conv(normalize(images), "stem_conv"), "stem_bn"))
    for stage in ("stage2_block1", "stage3_block1"):
        x = tf.nn.avg_pool2d(x, 2, 2, "VALID")
        y = norm(conv(x, f"{stage}_conv1"), f"{stage}_bn1")
        y = norm(conv(tf.nn.relu(y), f"{stage}_conv2"), f"{stage}_bn2")
        x = norm(conv(x, f"{stage}_shortcut_conv"), f"{stage}_shortcut_bn")
        x = tf.nn.relu(x + y)
    head = encoder.get_layer("head_projection")
    expected = tf.reduce_mean(x, (1, 2)) @ head.kernel.value + head.bias
    assert x.shape[1:] == (2, 2, 16)
    np.testing.assert_allclose(
        encoder(images, training=False), expected, rtol=1e-4, atol=1e-4
    )


def test_initial_weights_are_drawn_like_pytorchs():
    encoder = build_encoder("resnet18", image_size=224, head="mlp")
    for name, drawn in pytorch.load("initial_weights").items():
        ours = pytorch.keras_variable(encoder, name).numpy().ravel()
        assert reference.kolmogorov_smirnov(ours, drawn) < 1, name
    for layer in encoder.layers:
        if isinstance(layer, moco_keras.SplitBatchNormalization):
            np.testing.assert_array_equal(layer.gamma, 1)
            np.testing.assert_array_equal(layer.beta, 0)
        elif isinstance(layer, keras.layers.Conv2D):
            *receptive_field, _, filters = layer.kernel.shape
            deviation = (2 / (np.prod(receptive_field) * filters)) ** 0.5
            spread = np.std(layer.kernel.numpy())
            assert spread == pytest.approx(deviation, rel=0.05), layer.name


def test_mlp_head_has_a_hidden_layer_of_the_features_size():
    linear = build_encoder("resnet18", 32, width=8)
    mlp = build_encoder("resnet18", 32, width=8, head="mlp")
    assert mlp.count_params() - linear.count_params() == 64 * 64 + 64


def test_without_a_head_normalized_features_are_compared(images):
    inputs = keras.Input((8, 8, 3))
    mine = keras.Model(inputs, keras.layers.Conv2D(6, 3)(inputs))
    encoder = build_encoder(mine, 8, 6, head="none")
    pooled = keras.Model(encoder.input, encoder.get_layer("pool").output)
    x = pooled(images).numpy()
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    projections = encoder(images, training=True).numpy()
    np.testing.assert_allclose(projections, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        backbone(encoder)(images), encoder(images, training=False)
    )


def test_without_a_head_batch_norm_has_its_splits(images):
    encoder = build_encoder("resnet6", 8, head="none", width=4, bn_splits=2)
    assert encoder.output_shape == (None, 16)
    x = encoder(images, training=True).numpy()
    for group in np.split(x, 2):
        np.testing.assert_allclose(group.mean(0), 0, atol=1e-5)
    message = "length of the features, 16.*projection_dim=128"
    with pytest.raises(ValueError, match=message):
        build_encoder("resnet6", 8, 128, head="none", width=4)


@pytest.mark.parametrize("name", resnet.NAMES)
def test_the_length_of_features_is_known_before(name):
    encoder = build_encoder(name, 32, width=4)
    length = backbone(encoder).output_shape[1]
    assert resnet.length(name, 4) == length


def test_any_functional_model_is_a_backbone(images):
    inputs = keras.Input((8, 8, 3))
    mine = keras.Model(inputs, keras.layers.Flatten()(inputs))
    encoder = build_encoder(mine, image_size=8, projection_dim=5)
    assert encoder(images).shape == (16, 5)
    assert backbone(encoder)(images).shape == (16, 192)


def test_backbone_needs_to_know_where_the_head_begins():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Flatten()(inputs))
    with pytest.raises(ValueError, match="build_encoder"):
        backbone(model)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backbone": "resnet19"}, "backbone='resnet19'"),
        ({"head": "deep"}, "head='deep'"),
        ({"stem": "wide"}, "stem='wide'"),
        ({"width": 0}, "width=0"),
        ({"projection_dim": -1}, "projection_dim=-1"),
        ({"bn_splits": 0}, "splits=0"),
        ({"image_size": 8.0}, "image_size=8.0"),
        ({"pixels": "bytes"}, "pixels='bytes'"),
        ({"pixels": "raw"}, "pixels='raw', backbone='resnet18'"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(**{"backbone": "resnet18", "image_size": 32, **kwargs})


@pytest.mark.parametrize(
    "kwargs",
    [{"stem": "cifar"}, {"width": 32}, {"bn_splits": 8}, {"norm": "sync"}],
    ids=str,
)
def test_a_model_as_backbone_is_taken_as_it_is(kwargs):
    inputs = keras.Input((8, 8, 3))
    mine = keras.Model(inputs, keras.layers.Flatten()(inputs))
    (name,) = kwargs
    with pytest.raises(ValueError, match=f"`{name}` is for the ResNets"):
        build_encoder(mine, image_size=8, **kwargs)


def test_a_backbone_of_another_size_is_refused():
    inputs = keras.Input((16, 16, 3))
    mine = keras.Model(inputs, keras.layers.Flatten()(inputs))
    with pytest.raises(ValueError, match="image_size"):
        build_encoder(mine, image_size=8)


def test_a_frozen_batch_norm_stays_frozen():
    layer = moco_keras.SplitBatchNormalization()
    layer.build((None, 2, 2, 3))
    layer.trainable = False
    layer(np.ones((4, 2, 2, 3), "float32") * 5, training=True)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(3))


def rescaling_inside(size):
    """A small backbone that rescales in a nested model."""
    inner_inputs = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inner_inputs)
    x = keras.layers.Conv2D(4, 3, name="stem")(x)
    inner = keras.Model(inner_inputs, x)
    inputs = keras.Input((size, size, 3))
    return keras.Model(inputs, inner(keras.layers.Identity()(inputs)))


def efficient_net(size):
    """The first two stages of an EfficientNet, which has seven."""
    blocks = efficientnet.DEFAULT_BLOCKS_ARGS[:2]
    with mock.patch.object(efficientnet, "DEFAULT_BLOCKS_ARGS", blocks):
        return keras.applications.EfficientNetB0(
            include_top=False, weights=None, input_shape=(size, size, 3)
        )


@pytest.mark.parametrize(
    ("make", "accelerator"),
    [
        (rescaling_inside, "cpu"),
        (rescaling_inside, "gpu"),
        (efficient_net, "cpu"),
    ],
    indirect=["accelerator"],
)
def test_a_backbone_that_normalizes_gets_plain_pixels(make, rng, tmp_path):
    images = rng.integers(0, 256, (8, 32, 32, 3), "uint8")
    mine = make(32)
    with pytest.warns(UserWarning, match='rescaling.*again.*pixels="raw"'):
        build_encoder(mine, 32)
    encoder = build_encoder(mine, 32, 5, pixels="raw")
    expected = mine(images.astype("float32")).numpy().mean(axis=(1, 2))
    np.testing.assert_allclose(
        backbone(encoder)(images), expected, rtol=1e-5, atol=1e-6
    )
    assert pixel_format.takes_pixels(encoder)
    folder = moco_keras.export_encoder(encoder, tmp_path, output="projection")
    served = moco_keras.load_encoder(tmp_path)(images)
    np.testing.assert_allclose(served, encoder(images), rtol=1e-4, atol=1e-5)
    loaded = keras.models.load_model(folder / "encoder.keras")
    np.testing.assert_allclose(loaded(images), encoder(images), rtol=1e-5)


@pytest.mark.parametrize("mean", [0.3, 127.0])
def test_a_normalization_of_pixels_is_recognized_by_its_mean(mean):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Normalization(mean=[mean] * 3, variance=[1.0] * 3)(inputs)
    mine = keras.Model(inputs, keras.layers.Conv2D(4, 3)(x))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        build_encoder(mine, 8)
    ours = [str(w.message) for w in warned if w.category is UserWarning]
    assert ["seems to do so again" in message for message in ours] == (
        [True] if mean > 10 else []
    )


def test_a_backbones_own_normalization_may_follow_ours(images):
    normalized, plain = (
        build_encoder(rescaling_inside(8), 8, pixels=pixels)
        for pixels in ("normalized", "raw")
    )
    spread = [
        np.std(
            keras.Model(x.input, x.get_layer("normalization").output)(images)
        )
        for x in (normalized, plain)
    ]
    assert 1 < spread[0] < 2 and 60 < spread[1] < 90


def test_a_rescaling_of_feature_maps_is_not_a_normalization(images):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    mine = keras.Model(inputs, keras.layers.Rescaling(0.5)(x))
    assert build_encoder(mine, 8, 5)(images).shape == (16, 5)


def make_model(inputs, outputs):
    """A model of several inputs or outputs."""
    x = [keras.Input((8, 8, 3)) for _ in range(inputs)]
    y = keras.layers.Add()(x) if inputs > 1 else x[0]
    y = [keras.layers.Conv2D(4, 3)(y) for _ in range(outputs)]
    return keras.Model(x, y)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 2), (2, 1), (2, 2)])
def test_a_backbone_has_one_input_and_one_output(inputs, outputs, images):
    model = make_model(inputs, outputs)
    message = f"{inputs} inputs and {outputs} outputs. Make"
    with pytest.raises(ValueError, match=message) as caught:
        build_encoder(model, 8)
    if inputs == 1:
        code = re.search("`(keras.Model.*)`", str(caught.value))[1]
        encoder = build_encoder(eval(code, {"keras": keras, "model": model}), 8)
        assert encoder(images).shape == (16, 128)


def test_a_backbone_of_any_kind_has_one_output():
    class Two(keras.Model):
        def call(self, images):
            return images, images

    with pytest.raises(ValueError, match="returned 2 tensors"):
        build_encoder(Two(), 8)


def test_a_list_of_one_input_is_one_input(images):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Conv2D(4, 3)(inputs)
    encoder = build_encoder(keras.Model([inputs], [outputs]), 8, 5)
    assert encoder(images).shape == (16, 5)


def test_an_unbuilt_model_is_a_backbone(images):
    mine = keras.Sequential([keras.layers.Conv2D(4, 3)])
    assert build_encoder(mine, 8, 5)(images).shape == (16, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_data_format", "channels_first"),
        ("floatx", "float64"),
        ("floatx", "float16"),
        ("dtype_policy", "float64"),
    ],
)
def test_unsupported_keras_settings_are_refused(name, value):
    setting = getattr(keras.config, f"set_{name}")
    before = getattr(keras.config, name)()
    setting(value)
    try:
        with pytest.raises(ValueError, match=f"{name}.*{value}") as caught:
            build_encoder("resnet18", 32, width=4)
        code = re.search("`(keras.config.set.*)` first", str(caught.value))[1]
        eval(code)
        encoders.check_defaults()
        build_encoder("resnet18", 32, width=4)
    finally:
        setting(before)
