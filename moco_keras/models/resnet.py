"""ResNet-18, 34 and 50 as torchvision has them, and a small one; two stems."""

import keras
from keras import layers

from moco_keras import arguments
from moco_keras.shuffle_bn import SplitBatchNormalization

_KAIMING = {"scale": 2.0, "mode": "fan_out"}


def _conv(x, filters, kernel_size, stride=1, name=None):
    padding = "same"
    if stride > 1:
        # PyTorch pads both sides alike; "same" at stride 2 does not.
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(
            **_KAIMING, distribution="untruncated_normal"
        ),
        name=name,
    )(x)


def _norm_relu(x, norm, name, shortcut=None):
    return norm(activation="relu", name=name)(x, shortcut)


def _basic_block(x, filters, stride, norm, name):
    y = _conv(x, filters, 3, stride, f"{name}_conv1")
    y = _norm_relu(y, norm, f"{name}_bn1")
    y = _conv(y, filters, 3, 1, f"{name}_conv2")
    x = _shortcut(x, filters, stride, norm, f"{name}_shortcut")
    return _norm_relu(y, norm, f"{name}_bn2", x)


def _bottleneck_block(x, filters, stride, norm, name):
    y = _conv(x, filters, 1, 1, f"{name}_conv1")
    y = _norm_relu(y, norm, f"{name}_bn1")
    y = _conv(y, filters, 3, stride, f"{name}_conv2")
    y = _norm_relu(y, norm, f"{name}_bn2")
    y = _conv(y, 4 * filters, 1, 1, f"{name}_conv3")
    x = _shortcut(x, 4 * filters, stride, norm, f"{name}_shortcut")
    return _norm_relu(y, norm, f"{name}_bn3", x)


def _shortcut(x, filters, stride, norm, name):
    if stride > 1:
        # The same as a stride in the convolution, whose gradient in oneDNN
        # overruns its memory where a pixel has four channels, and faster.
        x = layers.AveragePooling2D(1, strides=stride, name=f"{name}_pool")(x)
    if x.shape[-1] != filters:
        x = _conv(x, filters, 1, 1, f"{name}_conv")
        x = norm(name=f"{name}_bn")(x)
    return x


_BLOCKS = {
    "resnet18": (_basic_block, (2, 2, 2, 2)),
    "resnet34": (_basic_block, (3, 4, 6, 3)),
    "resnet50": (_bottleneck_block, (3, 4, 6, 3)),
    "resnet6": (_basic_block, (0, 1, 1)),
}
# These average pixels before a convolution that others stride: no pixel is left
# out, and a processor is faster at convolutions without a stride.
_POOLED = ("resnet6",)
_LENGTHS = {"resnet6": 4, "resnet50": 32}  # times the width; 8 of others
NAMES = tuple(_BLOCKS)
STEMS = ("cifar", "imagenet")


def length(name, width):
    """Length of the features of a ResNet, D.

    Args:
        name, width: see `resnet`.
    """
    return width * _LENGTHS.get(name, 8)


def resnet(x, name, stem, width=64, norm=SplitBatchNormalization):
    """Adds a ResNet, without pooling or head, to a Keras graph.

    Args:
        x: Keras tensor, float (N, H, W, 3).
        name: "resnet18", "resnet34", "resnet50"; or "resnet6", for small images
            on a processor: after its stem, an average pooling and a block,
            twice.
        stem: "cifar", a 3x3 convolution at full resolution, or "imagenet", a
            7x7 one at stride 2 and a max-pooling at stride 2.
        width: channels of the first stage; each later stage doubles them.
        norm: function that makes a batch norm, as `SplitBatchNormalization`.

    Returns:
        Keras tensor, float (N, h, w, D), D as `length` says.

    Reference:
        [He et al., 2016](https://arxiv.org/abs/1512.03385), with the stride of
        a bottleneck in its 3x3 convolution, as in torchvision; pooling in place
        of strides as in the shortcuts of
        [He et al., 2019](https://arxiv.org/abs/1812.01187).
    """
    width = arguments.whole(width=width)
    if stem == "cifar":
        x = _conv(x, width, 3, 1, "stem_conv")
    else:
        x = _conv(x, width, 7, 2, "stem_conv")
    x = _norm_relu(x, norm, "stem_bn")
    if stem == "imagenet":
        # ReLU's output is not negative, so zeros pad as well as -infinity.
        x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    block, depths = _BLOCKS[name]
    for stage, depth in enumerate(depths):
        for i in range(depth):
            stride = 2 if stage > 0 and i == 0 else 1
            block_name = f"stage{stage + 1}_block{i + 1}"
            if stride > 1 and name in _POOLED:
                x = layers.AveragePooling2D(2, name=f"{block_name}_pool")(x)
                stride = 1
            x = block(x, width * 2**stage, stride, norm, block_name)
    return x
