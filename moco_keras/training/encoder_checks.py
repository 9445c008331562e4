"""What an encoder must be to be trained, checked early."""

import keras

from moco_keras import keras_private, pixel_format


def check_encoder(encoder):
    """Refuses what is not a Keras model from images to vectors.

    Raises:
        ValueError: saying which shapes it takes or returns.
    """
    output_shape = getattr(encoder, "output_shape", None)
    if (
        not isinstance(output_shape, tuple)
        or len(output_shape) != 2
        or output_shape[-1] is None
    ):
        raise ValueError(
            "`encoder` must be a Keras model that returns one vector an image, "
            f"of shape (N, C). Received: {encoder!r} with output shape "
            f"{output_shape}. Pool and project, as `build_encoder` does."
        )
    if len(encoder.input_shape) != 4:
        raise ValueError(
            "`encoder` must take images, (N, height, width, channels). "
            f"Received a model that takes {encoder.input_shape}."
        )


def check_ranges(augmenter, encoder):
    """Refuses an augmenter of this library for pixels of another range.

    Raises:
        ValueError: saying both ranges.
    """
    if not (
        isinstance(augmenter, keras.Layer)
        and pixel_format.takes_pixels(encoder)
    ):
        return
    pixels = pixel_format.of(encoder)
    for layer in keras_private.flatten_layers(augmenter):
        bounds = getattr(layer, "bounds", pixels.bounds)
        if bounds != pixels.bounds:
            raise ValueError(
                "Encoder and augmenter must have the same `value_range`. "
                f"Received: an encoder of pixels in {pixels}, and "
                f"{layer.name!r} of pixels in {list(bounds)}."
            )
