"""What every export is made from, whatever the kind of its model."""

import math

import numpy as np
import tensorflow as tf

from moco_keras import pixel_format


class Exported:
    """A model to export. A subclass for each kind says what is its own.

    Attributes:
        kind: of the model, such as "encoder". Files are called after it.
        result: name of the output that every part of the export has, float32
            (N, D).
        numbers: what the parts are compared by, for messages.
        model: a `keras.Model` from images, (N, H, W, C), to (N, D).
        image_shape: (H, W, C).
        image_dtype: of the images that the export takes, one of
            `pixel_format.DTYPES`.
        pixels: `PixelFormat` of the images.
        decodes_files: whether the images may be those of image files.

    Args:
        model: the model as users pass it.
        image_dtype: as above, or None for what the model was trained on, or
            what its range needs.

    Raises:
        ValueError: if it does not take images of one size, or it is not known
            which range their pixels have, or they cannot be of that type.
    """

    def __init__(self, model, image_dtype=None):
        shape = getattr(model, "input_shape", None)
        if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
            raise ValueError(
                f"An exported {self.kind} must take images of one size, "
                f"(N, H, W, C). Received: {model!r}, which takes {shape}. "
                f"Build it with `build_{self.kind}`."
            )
        if not pixel_format.takes_pixels(model):
            raise ValueError(
                f"An exported {self.kind} must take pixels as they are, and "
                f"normalize them itself. Received: {model!r}, whose range is "
                f"unknown. Build it with `build_{self.kind}`; `build_encoder` "
                "takes any functional Keras model as `backbone`."
            )
        self.model, self.image_shape = model, shape[1:]
        self.pixels = pixel_format.of(model)
        if image_dtype is None:
            image_dtype = "float32" if self.pixels.value_range else "uint8"
        if image_dtype not in self.pixels.dtypes:
            raise ValueError(
                "`image_dtype` must be one of "
                f"{', '.join(self.pixels.dtypes)} for pixels in {self.pixels}. "
                f"Received: image_dtype={image_dtype!r}."
            )
        self.image_dtype = image_dtype
        self.decodes_files = (
            image_dtype == "uint8"
            and self.pixels.bounds == (0.0, 255.0)
            and shape[3] in (1, 3)
        )

    def noise(self, count):
        """Random images, to check parts of the export on."""
        shape, rng = (count, *self.image_shape), np.random.default_rng(0)
        low, high = self.pixels.bounds
        if self.image_dtype == "float32":
            return rng.uniform(low, high, shape).astype("float32")
        limits = np.iinfo(self.image_dtype)
        low = max(limits.min, math.ceil(low))
        high = min(limits.max, math.floor(high))
        if low > high:
            raise ValueError(
                "`image_dtype` must hold numbers of the range of the pixels. "
                f"Received: image_dtype={self.image_dtype!r}, pixels in "
                f"{self.pixels}."
            )
        return rng.integers(low, high + 1, shape, self.image_dtype)

    def function(self, model):
        """Makes a function of images that can be traced.

        Args:
            model: `self.model`, or a copy of it.

        Returns:
            A function from images of any dtype, (N, H, W, C), to {"<result>":
            float32 (N, D)}.
        """

        def compute(images):
            outputs = model(tf.cast(images, "float32"), training=False)
            return {self.result: self.finish(tf.cast(outputs, "float32"))}

        return compute

    def finish(self, outputs):
        """Results from what the model returns, both float32 (N, D)."""
        raise NotImplementedError

    def more(self, results):
        """What the signatures return beside the results, tensors by name."""
        return {}

    def comparable(self, results):
        """Results as numbers that rounding changes by a part of the largest."""
        return results

    def facts(self):
        """What the record says of this kind alone, JSON values by name."""
        raise NotImplementedError

    def introduction(self):
        """The model card's first words, up to "learned", and what follows."""
        raise NotImplementedError

    def section(self):
        """Lines of the model card on this kind alone."""
        return []
