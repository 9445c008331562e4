"""What every export is made from, whatever the kind of its model."""

import tensorflow as tf

from moco_keras.models import encoders


class Exported:
    """A model to export. A subclass for each kind says what is its own.

    Attributes:
        kind: of the model, such as "encoder". Files are called after it.
        result: name of the output that every part of the export has, float32
            (N, D).
        numbers: what the parts are compared by, for messages.
        model: a `keras.Model` from images, (N, S, S, 3), to (N, D).
        image_size: side of its images in pixels, S.

    Args:
        model: the model as users pass it.

    Raises:
        ValueError: if it does not take square RGB images of one size, or it is
            not known whether their pixels are in [0, 255].
    """

    def __init__(self, model):
        shape = getattr(model, "input_shape", None)
        if (
            not isinstance(shape, tuple)
            or len(shape) != 4
            or None in shape[1:]
            or shape[1] != shape[2]
            or shape[3] != 3
        ):
            raise ValueError(
                f"An exported {self.kind} must take square RGB images of one "
                f"size, (N, S, S, 3). Received: {model!r}, which takes "
                f"{shape}. Build it with `build_{self.kind}`."
            )
        if not encoders.takes_pixels(model):
            raise ValueError(
                f"An exported {self.kind} must take pixels in [0, 255], and "
                f"normalize them itself. Received: {model!r}, whose range is "
                f"unknown. Build it with `build_{self.kind}`; `build_encoder` "
                "takes any functional Keras model as `backbone`."
            )
        self.model, self.image_size = model, shape[1]

    def function(self, model):
        """Makes a function of images that can be traced.

        Args:
            model: `self.model`, or a copy of it.

        Returns:
            A function from images of any dtype, (N, S, S, 3), to {"<result>":
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
