"""Encoders: a backbone, global pooling and a projection head."""

import functools
import inspect
import warnings

import keras
import numpy as np
from keras import layers

from moco_keras import arguments
from moco_keras.models import keras_backbones, resnet
from moco_keras.shuffle_bn import SplitBatchNormalization

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)

_HEADS = ("linear", "mlp")
_PIXELS = ("normalized", "raw")
_NORMALIZATION = "normalization"  # the layer that takes pixels in [0, 255]
_FEATURES = "features"  # the layer whose output is the backbone's feature


def build_encoder(
    backbone="resnet50",
    image_size=224,
    projection_dim=128,
    *,
    head="linear",
    stem="auto",
    width=64,
    bn_splits=1,
    norm="batch",
    pixels=None,
):
    """Builds an encoder from pixels to projections.

    The encoder normalizes its pixels itself (with the mean and deviation of
    CIFAR-10 at up to 64 pixels, of ImageNet above), so that every caller, in
    training, in evaluation or behind a server, passes plain pixels. That is why
    no augmentation of this library ends with a normalization.

    Args:
        backbone: "resnet18", "resnet34", "resnet50", or a Keras model from
            images, float (N, S, S, 3), to features, (N, D), or feature maps,
            (N, h, w, D), which are then averaged.
        image_size: side of the images in pixels, S.
        projection_dim: length of a projection, C of the paper.
        head: "linear" (MoCo v1) or "mlp" (v2: D to D, ReLU, D to C).
        stem: of a ResNet: "cifar", "imagenet", or "auto", the first up to 64
            pixels and the second above.
        width: channels of a ResNet's first stage; 64 in the papers.
        bn_splits: groups of a ResNet's batch norms on one device, see
            `SplitBatchNormalization`.
        norm: batch norm of a ResNet: "batch", over the images of each replica,
            or "sync", over those of all replicas together.
        pixels: what a Keras model as `backbone` takes: "normalized" pixels, or
            "raw" ones in [0, 255], because it normalizes them itself, as
            `keras.applications.EfficientNetB0` does. By default "normalized";
            there is a warning where the model seems to normalize.

    Returns:
        A functional `keras.Model` from float (N, S, S, 3), pixels in [0, 255],
        to float (N, C), not normalized.

    Raises:
        ValueError: if a name is unknown, a number is not positive, the
            backbone does not fit, or Keras is set to anything but channels last
            and float32.

    Reference:
        v1: [He et al., 2020](https://arxiv.org/abs/1911.05722); v2:
        [Chen et al., 2020](https://arxiv.org/abs/2003.04297).

    Example:
        >>> encoder = build_encoder("resnet18", image_size=32)
        >>> encoder(images).shape  # uint8 (8, 32, 32, 3)
        (8, 128)
    """
    check_defaults()
    image_size = arguments.whole(image_size=image_size)
    projection_dim = arguments.whole(projection_dim=projection_dim)
    width = arguments.whole(width=width)
    bn_splits = arguments.whole(bn_splits=bn_splits)
    _check_choice("head", head, _HEADS)
    _check_choice("stem", stem, ("auto", *resnet.STEMS))
    _check_choice("norm", norm, ("batch", "sync"))
    if norm == "sync" and bn_splits > 1:
        raise ValueError(
            '`norm="sync"` must have `bn_splits=1`. Received: '
            f"bn_splits={bn_splits}."
        )
    if isinstance(backbone, keras.Model):
        _refuse_settings_of_a_resnet(stem, width, bn_splits, norm)
    _check_pixels(pixels, backbone)
    small = image_size <= 64
    inputs = keras.Input((image_size, image_size, 3), name="images")
    if pixels == "raw":
        normalization = 1.0, 0.0
    else:
        mean, std = (
            (CIFAR10_MEAN, CIFAR10_STD)
            if small
            else (IMAGENET_MEAN, IMAGENET_STD)
        )
        # For a row of pixels: TensorFlow is slow to repeat three numbers.
        mean, std = (np.tile(values, (image_size, 1)) for values in (mean, std))
        normalization = (1 / 255 / std).tolist(), (-mean / std).tolist()
    x = layers.Rescaling(*normalization, dtype="float32", name=_NORMALIZATION)(
        inputs
    )
    if isinstance(backbone, keras.Model):
        x = keras_backbones.apply(backbone, x)
    else:
        _check_choice("backbone", backbone, resnet.NAMES)
        if stem == "auto":
            stem = "cifar" if small else "imagenet"
        make_norm = functools.partial(
            SplitBatchNormalization, bn_splits, synchronized=norm == "sync"
        )
        x = resnet.resnet(x, backbone, stem, width, make_norm)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name=_FEATURES)(x)
    else:
        x = layers.Identity(name=_FEATURES)(x)
    if head == "mlp":
        x = layers.ReLU(name="head_relu")(
            _linear(x, x.shape[-1], name="head_hidden")
        )
    x = _linear(x, projection_dim, name="head_projection")
    return keras.Model(inputs, x, name="encoder")


def backbone(encoder):
    """Cuts the projection head off an encoder that `build_encoder` made.

    Args:
        encoder: a model from `build_encoder`, or one of a `MoCo`'s encoders.

    Returns:
        A functional `keras.Model` from images, as the encoder takes them, to
        features (N, D). It shares the encoder's weights, and its batch norms
        keep their splits. To fine-tune on batches that these do not divide,
        load `encoder.keras` of an export, which has no splits.

    Raises:
        ValueError: if the encoder has no layer called "features".
    """
    if _FEATURES not in [layer.name for layer in encoder.layers]:
        raise ValueError(
            f"The encoder must have a layer called {_FEATURES!r}, where its "
            "head begins. Build it with `build_encoder`, which takes any "
            f"functional Keras model as `backbone`. Received: {encoder.name!r} "
            f"with layers {[layer.name for layer in encoder.layers][:5]}..."
        )
    features = encoder.get_layer(_FEATURES).output
    return keras.Model(encoder.inputs[0], features, name="backbone")


def features_and_projections(encoder):
    """What `backbone` and the encoder itself return, of one pass.

    Args and errors: as in `backbone`.

    Returns:
        A functional `keras.Model` to [features (N, D), projections (N, C)].
    """
    outputs = [backbone(encoder).output, encoder.output]
    return keras.Model(encoder.input, outputs)


def check_defaults():
    """Refuses settings of Keras that images and encoders here cannot follow.

    Raises:
        ValueError: naming the setting, and how to set it back.
    """
    for name, required in (
        ("image_data_format", "channels_last"),
        ("floatx", "float32"),
    ):
        value = getattr(keras.config, name)()
        if value != required:
            raise ValueError(
                f"`keras.config.{name}()` must be {required!r}. Received: "
                f"{value!r}. Call `keras.config.set_{name}({required!r})` "
                "first."
            )
    policy = keras.config.dtype_policy()
    if policy.compute_dtype == "float64":
        raise ValueError(
            "`keras.config.dtype_policy()` must compute in float32 or shorter. "
            f"Received: {policy.name!r}. Call "
            "`keras.config.set_dtype_policy('float32')` first."
        )


def takes_pixels(encoder):
    """Whether an encoder takes pixels in [0, 255], as those built here do."""
    return any(
        layer.name == _NORMALIZATION and isinstance(layer, layers.Rescaling)
        for layer in encoder.layers
    )


def _linear(x, units, name):
    """A dense layer that starts as PyTorch's `nn.Linear` does."""
    bound = x.shape[-1] ** -0.5
    return layers.Dense(
        units,
        kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
        bias_initializer=keras.initializers.RandomUniform(-bound, bound),
        name=name,
    )(x)


def _refuse_settings_of_a_resnet(*given):
    """A Keras model as backbone is taken as it is."""
    parameters = inspect.signature(build_encoder).parameters
    for name, value in zip(
        ("stem", "width", "bn_splits", "norm"), given, strict=True
    ):
        if value != parameters[name].default:
            raise ValueError(
                f"`{name}` is for the ResNets that are built here. Received: "
                f"{name}={value!r} with a Keras model as `backbone`. Leave it "
                "out, and build the model as you want it: with "
                "`SplitBatchNormalization`, for example, instead of Keras's "
                "batch norm."
            )


def _check_pixels(pixels, backbone):
    if pixels is not None:
        _check_choice("pixels", pixels, _PIXELS)
        if not isinstance(backbone, keras.Model):
            raise ValueError(
                "`pixels` says what a Keras model as `backbone` takes. "
                f"Received: pixels={pixels!r}, backbone={backbone!r}. Leave it "
                "out."
            )
    elif isinstance(backbone, keras.Model) and (
        layer := keras_backbones.own_normalization(backbone)
    ):
        warnings.warn(
            "A `backbone` gets normalized images, unless `pixels` says that it "
            f"normalizes them itself. Received: {backbone.name!r}, whose layer "
            f'{layer.name!r} seems to do so again. Pass `pixels="raw"` if it '
            'takes pixels in [0, 255], or `pixels="normalized"` if not.',
            stacklevel=3,
        )


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(choices)}. "
            f"Received: {name}={value!r}."
        )
