"""Models made of the layers of an encoder."""

import keras
from keras import layers

from moco_keras import arguments, pixel_format

FEATURES = "features"  # the layer whose output is the backbone's feature


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
    if FEATURES not in [layer.name for layer in encoder.layers]:
        raise ValueError(
            f"The encoder must have a layer called {FEATURES!r}, where its "
            "head begins. Build it with `build_encoder`, which takes any "
            f"functional Keras model as `backbone`. Received: {encoder.name!r} "
            f"with layers {[layer.name for layer in encoder.layers][:5]}..."
        )
    features = encoder.get_layer(FEATURES).output
    return keras.Model(encoder.inputs[0], features, name="backbone")


def features_and_projections(encoder):
    """What `backbone` and the encoder itself return, of one pass.

    Args and errors: as in `backbone`.

    Returns:
        A functional `keras.Model` to [features (N, D), projections (N, C)],
        float32.
    """
    outputs = [backbone(encoder).output, encoder.output]
    return with_float32_outputs(keras.Model(encoder.input, outputs))


def with_float32_outputs(model):
    """The same functional model, whose outputs are float32.

    Of bfloat16, many workers could not gather them.
    """
    outputs = keras.tree.map_structure(
        lambda x: layers.Identity(dtype="float32")(x), model.output
    )
    return keras.Model(model.input, outputs)


def of_size(encoder, view_size):
    """The same encoder, of the same weights, for images of another size.

    Args:
        encoder: functional `keras.Model` from images (N, H, W, C).
        view_size: side of the images in pixels; or their height and width; or
            None for the encoder itself.

    Returns:
        A functional `keras.Model` from images (N, height, width, C) to what the
        encoder returns. They share their layers.

    Raises:
        ValueError: if the encoder can take no other size, because its weights
            depend on it.
    """
    if view_size is None:
        return encoder
    sides = arguments.sides(view_size=view_size)
    inputs = keras.Input((*sides, encoder.input_shape[-1]), name="images")
    x, taken = pixel_format.normalized_as(encoder, inputs)
    rest = keras.Model(taken, encoder.output)
    try:
        # Its layers, not a model within the model.
        outputs = rest.call(x)
    except ValueError as error:
        raise ValueError(
            "An encoder must take images of any size to take views of another "
            "size than its images. The ResNets of `build_encoder` do, and a "
            "Keras model as `backbone` if it was built with "
            "`keras.Input((None, None, 3))`. Received: one of images of "
            f"{encoder.input_shape[1:3]}, views of {view_size!r}, and a layer "
            f"that refuses them: {error}"
        ) from error
    return keras.Model(inputs, outputs, name=encoder.name)
