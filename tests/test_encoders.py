import keras
import numpy as np
import pytest

import moco_keras
from moco_keras import backbone, build_encoder

# Counted in torchvision: its models, their last layer replaced by a head.
RESNET18, RESNET34, RESNET50 = 11_176_512, 21_284_672, 23_508_032


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [
        ("resnet18", RESNET18, 512),
        ("resnet34", RESNET34, 512),
        ("resnet50", RESNET50, 2048),
    ],
)
def test_parameters_are_torchvisions(name, parameters, dim):
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


def test_encoder_normalises_pixels_itself(images):
    encoder = build_encoder("resnet18", image_size=8, width=4)
    normalise = keras.Model(
        encoder.input, encoder.get_layer("normalization").output
    )
    mean = np.array([0.4914, 0.4822, 0.4465])
    std = np.array([0.2023, 0.1994, 0.2010])
    np.testing.assert_allclose(
        normalise(images), (images / 255 - mean) / std, rtol=1e-4, atol=1e-5
    )


def test_initial_weights_are_pytorchs():
    encoder = build_encoder("resnet18", image_size=32, head="mlp")
    kernel = encoder.get_layer("stage4_block2_conv2").kernel.numpy()
    assert kernel.std() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    for name, fan_in in (("head_hidden", 512), ("head_projection", 512)):
        layer = encoder.get_layer(name)
        for values in (layer.kernel.numpy(), layer.bias.numpy()):
            bound = fan_in**-0.5
            assert np.abs(values).max() <= bound
            assert values.std() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_mlp_head_has_a_hidden_layer_of_the_features_size():
    linear = build_encoder("resnet18", 32, width=8)
    mlp = build_encoder("resnet18", 32, width=8, head="mlp")
    assert mlp.count_params() - linear.count_params() == 64 * 64 + 64


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
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(**{"backbone": "resnet18", "image_size": 32, **kwargs})


def test_a_backbone_of_another_size_is_refused():
    inputs = keras.Input((16, 16, 3))
    mine = keras.Model(inputs, keras.layers.Flatten()(inputs))
    with pytest.raises(ValueError, match="image_size"):
        build_encoder(mine, image_size=8)


def test_frozen_batch_norm_of_a_user_stays_frozen():
    layer = moco_keras.SplitBatchNormalization()
    layer.build((None, 2, 2, 3))
    layer.trainable = False
    layer(np.ones((4, 2, 2, 3), "float32") * 5, training=True)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(3))
