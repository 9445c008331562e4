"""SavedModels of trained encoders."""

from pathlib import Path

import keras
import tensorflow as tf

from moco_keras import encoders


def export_encoder(model, path):
    """Writes the query encoder's backbone as a SavedModel.

    The SavedModel normalises pixels itself and loads without Keras and without
    this library:

        encoder = tf.saved_model.load(path).signatures["serving_default"]
        encoder(images=images)["embedding"]  # uint8 (N, S, S, 3) -> (N, D)

    Args:
        model: a `MoCo`, or an encoder from `build_encoder`.
        path: a folder that does not exist yet.

    Returns:
        The path, as a `Path`. The signature `serving_default` maps `images`,
        uint8 (N, S, S, 3), to `embedding`, float32 (N, D), the backbone's
        features, not normalised.

    Raises:
        FileExistsError: if `path` exists.
        ValueError: if the encoder's backbone cannot be told from its head.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(
            f"`path` must not exist yet. Received: {path}, which does. Nothing "
            "was overwritten; choose another."
        )
    encoder = getattr(model, "query_encoder", model)
    backbone = encoders.backbone(encoder)

    def serve(images):
        features = backbone(tf.cast(images, "float32"), training=False)
        return {"embedding": tf.cast(features, "float32")}

    archive = keras.export.ExportArchive()
    archive.track(backbone)
    archive.add_endpoint(
        "serving_default",
        serve,
        input_signature=[
            tf.TensorSpec(backbone.input_shape, tf.uint8, name="images")
        ],
    )
    archive.write_out(str(path), verbose=False)
    return path
