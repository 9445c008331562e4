"""An estimate of the memory that a training run needs."""

import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from moco_keras import arguments, distribution
from moco_keras.distribution import accelerators
from moco_keras.models import resnet
from moco_keras.recipes import _health, _record

# Of the backbones at width 64; they grow with its square.
_WEIGHTS = {
    "resnet6": 1.16e6,
    "resnet18": 11.2e6,
    "resnet34": 21.3e6,
    "resnet50": 23.5e6,
}
# From measurements: docs/performance.md.
_FIXED = 350 * 2**20  # compiled steps, threads
_COPIES = 6  # of an encoder's weights: optimizer, gradients, checkpoint, export
_OF_OUTPUTS = 1.25  # times what the layers return: with gradients and keys
_WAITING = 4  # batches of views
_EVALUATED = 256  # images at a time, see `features.outputs`
_OF_LARGEST = 3.6  # times what the largest layer returns
_KEPT = 0.4  # of what a step or an evaluation took, while the other runs


class Memory(NamedTuple):
    """What a training run needs beside its model, estimated, in bytes.

    Attributes:
        fixed: for the weights' copies, compiled steps, threads and files.
        of_image: for each image of a step.
        evaluation: for the images that are evaluated at a time.
    """

    fixed: int
    of_image: int
    evaluation: int

    @classmethod
    def of(cls, model, settings):
        """That of a `MoCo` in a program with these settings."""
        encoder = model.query_encoder
        outputs = [
            tf.as_dtype(output.dtype).size * math.prod(output.shape[1:])
            for layer in encoder.layers
            for output in keras.tree.flatten(layer.output)
        ]
        pixels = math.prod(model.view_encoders[0].input_shape[1:])
        whole = math.prod(encoder.input_shape[1:])
        of_view = pixels / whole
        views = 2 * 4 * pixels
        kept = 1 if model.pixels.value_range is None else 4  # bytes a pixel
        times = 1 + settings.symmetric
        return cls(
            fixed=_FIXED
            + _COPIES * 4 * encoder.count_params()
            + 2 * 4 * math.prod(model.queue.keys.shape)
            # Those that the monitor of health keeps, with two views of each.
            + _health.SAMPLE * kept * (whole + 2 * pixels),
            of_image=math.ceil(
                _OF_OUTPUTS * sum(outputs) * of_view * times
                + _WAITING * views
                + 2 * 4 * settings.queue_size * times
            ),
            evaluation=math.ceil(_EVALUATED * _OF_LARGEST * max(outputs)),
        )

    def needed(self, images):
        """Bytes for steps of this number of images."""
        step = self.of_image * images
        both = sorted((step, self.evaluation))
        return self.fixed + math.ceil(both[1] + _KEPT * both[0])

    def room_for(self, free):
        """The most images in a step for which so many bytes are enough."""
        left = free - self.fixed
        step = min(
            left - _KEPT * self.evaluation, (left - self.evaluation) / _KEPT
        )
        return max(0, int(step / self.of_image))


def check_model(settings):
    """Refuses a model that memory has no room for, before it is built.

    To build it could take minutes, and then end the process.

    Raises:
        ValueError: if it needs more memory than is free, and is not resumed.
    """
    features = resnet.length(settings.backbone, settings.width)
    # At the least: both encoders and the optimizer's momentum; the queue.
    needs = {
        "width": 12 * _WEIGHTS[settings.backbone] * (settings.width / 64) ** 2,
        "projection_dim": 12 * features * settings.projection_dim,
        "queue_size": 4 * settings.queue_size * settings.projection_dim,
    }
    need, free = sum(needs.values()), accelerators.free_memory()
    if free is None or need <= free or _record.is_resumed(settings):
        return
    largest = max(needs, key=needs.get)
    raise ValueError(
        "A model must fit the memory that is free. Received: "
        + ", ".join(f"--{name}={getattr(settings, name)}" for name in needs)
        + f", which need {gigabytes(need)} or more; {gigabytes(free)} are "
        f"free. Lower --{largest}, which takes most of it."
    )


def num_memories(strategy):
    """How many of those that share a batch have a memory of their own."""
    if accelerators.on_gpu():
        return strategy.num_replicas_in_sync
    return distribution.num_workers(strategy)


def gigabytes(number):
    """A number of bytes, in words."""
    return f"{number / 1e9:.1f} GB"


def lack_for_images(count, image_size, stream):
    """What images need and what is free, if memory has no room for them.

    Args:
        count: number of images.
        image_size: their side, or height and width, in pixels.
        stream: `data.ImageStream` that they come from.

    Returns:
        Text such as "need 9.0 GB; 8.0 GB are free", or None. On a GPU it is
        None, as its memory does not hold them.
    """
    free = None if accelerators.on_gpu() else accelerators.free_memory()
    height, width = arguments.sides(image_size=image_size)
    of_image = height * width * stream.channels
    of_image *= np.dtype(stream.image_dtype).itemsize
    need = 2 * count * of_image  # twice, when they are joined
    if free is None or need <= free:
        return None
    return f"need {need / 1e9:.1f} GB; {free / 1e9:.1f} GB are free"
