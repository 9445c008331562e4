"""Encoders: a backbone, global pooling and a projection head."""

import functools
import inspect
import warnings

import keras
from keras import layers

from moco_keras import arguments, pixel_format
from moco_keras.models import derived, keras_backbones, resnet
from moco_keras.shuffle_bn import SplitBatchNormalization

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)

HEADS = ("linear", "mlp", "none")
PROJECTION_DIM = 128  # of a head
_PIXELS = ("normalized", "raw")


def build_encoder(
    backbone="resnet50",
    image_size=224,
    projection_dim=None,
    *,
    channels=3,
    value_range=None,
    mean=None,
    std=None,
    head="linear",
    stem="auto",
    width=64,
    bn_splits=1,
    norm="batch",
    pixels=None,
):
    """Builds an encoder from pixels to projections.

    The encoder normalizes its pixels itself, so that every caller, in training,
    in evaluation or behind a server, passes images as they are. That is why no
    augmentation of this library ends with a normalization.

    Args:
        backbone: "resnet18", "resnet34", "resnet50"; "resnet6", a small one for
            small images on a processor; or a Keras model from images, float
            (N, H, W, C), to features, (N, D), or feature maps, (N, h, w, D),
            which are then averaged.
        image_size: side of the images in pixels; or their height and width,
            (H, W).
        projection_dim: length of a projection; by default 128, and with
            `head="none"` that of the features.
        channels: of the images, C.
        value_range: the darkest and the brightest value of the pixels, such as
            (0, 65535). Images may then be uint8, uint16, int16 or float32. By
            default they are uint8, from 0 to 255.
        mean, std: mean and standard deviation of each channel, in which
            `value_range` is [0, 1]. By default, for three channels, those of
            CIFAR-10 at up to 64 pixels, and of ImageNet above.
        head: "linear" (MoCo v1); "mlp" (v2: D to D, ReLU, D to C); or "none":
            the features are the projections, C = D, after a batch norm, whose
            groups must have two images or more.
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
        A functional `keras.Model` from float (N, H, W, C), pixels in
        `value_range`, to float (N, projection_dim), not normalized.

    Raises:
        ValueError: if a name is unknown, a number is not positive, mean and
            deviation of the channels are not known, the backbone or the length
            of a projection does not fit, or Keras is set to anything but
            channels last and float32.

    Reference:
        v1: [He et al., 2020](https://arxiv.org/abs/1911.05722); v2:
        [Chen et al., 2020](https://arxiv.org/abs/2003.04297); none: Section 4.2
        of [Chen et al., 2020](https://arxiv.org/abs/2002.05709), with the batch
        norm of [Luo et al., 2019](https://arxiv.org/abs/1903.07071).

    Example:
        >>> encoder = build_encoder("resnet18", image_size=32)
        >>> encoder(images).shape  # uint8 (8, 32, 32, 3)
        (8, 128)
    """
    check_defaults()
    sides = arguments.sides(image_size=image_size)
    channels = arguments.whole(channels=channels)
    if value_range is not None:
        value_range = arguments.value_range(value_range)
    if projection_dim is not None:
        projection_dim = arguments.whole(projection_dim=projection_dim)
    width = arguments.whole(width=width)
    bn_splits = arguments.whole(bn_splits=bn_splits)
    _check_choice("head", head, HEADS)
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
    small = max(sides) <= 64
    if pixels == "raw":
        _refuse_normalization(mean=mean, std=std)
    else:
        mean, std = _normalization(mean, std, channels, small)
    inputs = keras.Input((*sides, channels), name="images")
    x = pixel_format.normalized(inputs, value_range, mean, std)
    make_norm = functools.partial(
        SplitBatchNormalization, bn_splits, synchronized=norm == "sync"
    )
    if isinstance(backbone, keras.Model):
        x = keras_backbones.apply(backbone, x)
    else:
        _check_choice("backbone", backbone, resnet.NAMES)
        if stem == "auto":
            stem = "cifar" if small else "imagenet"
        x = resnet.resnet(x, backbone, stem, width, make_norm)
    if head == "none":
        x = _pooled(x, "pool")
        if projection_dim is not None:
            _check_length(projection_dim, x.shape[-1])
        x = layers.Reshape((1, 1, x.shape[-1]), name="features_map")(x)
        x = make_norm(name="features_bn")(x)
        x = layers.Flatten(name=derived.FEATURES)(x)
    else:
        x = _pooled(x, derived.FEATURES)
        if head == "mlp":
            x = _linear(x, x.shape[-1], name="head_hidden")
            x = layers.ReLU(name="head_relu")(x)
        x = _linear(x, projection_dim or PROJECTION_DIM, "head_projection")
    return keras.Model(inputs, x, name="encoder")


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


def _pooled(x, name):
    maps = len(x.shape) == 4
    pool = layers.GlobalAveragePooling2D if maps else layers.Identity
    return pool(name=name)(x)


def _linear(x, units, name):
    """A dense layer that starts as PyTorch's `nn.Linear` does."""
    bound = x.shape[-1] ** -0.5
    return layers.Dense(
        units,
        kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
        bias_initializer=keras.initializers.RandomUniform(-bound, bound),
        name=name,
    )(x)


def _check_length(projection_dim, length):
    if projection_dim != length:
        raise ValueError(
            f"`projection_dim` must be the length of the features, {length}, "
            f'with head="none". Received: projection_dim={projection_dim}. '
            "Leave it out."
        )


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


def _normalization(mean, std, channels, small):
    """Mean and deviation of each channel, two tuples."""
    if mean is None and std is None and channels == 3:
        if small:
            return CIFAR10_MEAN, CIFAR10_STD
        return IMAGENET_MEAN, IMAGENET_STD
    for name, values, kind in (
        ("mean", mean, arguments.FINITE),
        ("std", std, arguments.POSITIVE),
    ):
        try:
            if len(values) == channels:
                for value in values:
                    arguments.real(kind, **{name: value})
                if max(map(abs, values)) <= 1:  # not in units of the pixels
                    continue
        except TypeError:
            pass
        raise ValueError(
            f"`{name}` must be {channels} number{'s' * (channels > 1)}, one "
            "for each channel, in which `value_range` is [0, 1]. Received: "
            f"{name}={values!r}. Measure it on the training images: "
            "`((images.astype('float64') - low) / (high - low))"
            f".{name}((0, 1, 2))`."
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def _refuse_normalization(**given):
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"`{name}` is for images that are normalized here. Received: "
                f'{name}={value!r} with pixels="raw". Leave it out, or pass '
                'pixels="normalized".'
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
