"""The export of encoders."""

import tensorflow as tf

from moco_keras.export import saved_model
from moco_keras.export.exported import Exported
from moco_keras.models import derived

_OUTPUTS = ("features", "projection")


def export_encoder(
    model,
    path,
    version=None,
    *,
    output="features",
    normalize=False,
    image_dtype=None,
    format=None,
    training=None,
):
    """Writes a query encoder as a new version of a SavedModel.

    The version is the folder `path/<version>`, as TensorFlow Serving wants it,
    and appears when it is whole. It takes plain images, and loads without Keras
    and without this library:

        encoder = tf.saved_model.load("path/1").signatures["serving_default"]
        encoder(images=images)["embedding"]  # uint8 (N, H, W, C) -> (N, D)

    It has two signatures, which both return `embedding`, float32 (N, D):

    - `serving_default` takes `images`, (N, H, W, C), of the encoder's size and
      of the type that it was trained on, and fails with `InvalidArgument` if
      they are of another size.
    - `serve_encoded` takes `image_bytes`, string (N,): JPEG and PNG files of up
      to 50 million pixels, and BMP and GIF files that TensorFlow reads as
      others do (docs/images.md). It turns JPEGs as EXIF says, and brings images
      to the encoder's size as `augmentations.evaluation` does. It fails with
      `InvalidArgument` if one of them is something else. Only encoders of uint8
      images of one or three channels have it.

    For no images, N = 0, both return no embeddings, (0, D), and so does ONNX
    Runtime; LiteRT refuses them.

    Beside it are `encoder.keras`, the same encoder for fine-tuning, and its
    record: `encoder.json`, and `README.md` made from that. Batch norm in
    `encoder.keras` takes whole batches, of any size: splits and synchronization
    are for pre-training only. If the package tensorflow-serving-api is
    installed, there are requests in `assets.extra` with which a server warms
    up. If requested, there is also a file for another runtime, `encoder.onnx`
    or `encoder.tflite`: from `images` to `embedding`, in float32 as well.

    The SavedModel computes in float32, whatever the precision of the encoder,
    so that it returns the same on every processor, to rounding. `encoder.keras`
    keeps the precision. Every part is loaded again, and must embed a batch as
    the encoder does, before the version gets its number. If an epoch of a
    `MoCo` was interrupted, batch norm's moving statistics are averaged over its
    replicas first.

    Args:
        model: a `MoCo`, or an encoder from `build_encoder`.
        path: folder of all versions.
        version: its number, 1 or more; by default the one after the highest.
        output: "features", those of the backbone, or "projection", what the
            loss compares.
        normalize: whether to divide each embedding by its length.
        image_dtype: type of the images that it takes, "uint8", "uint16",
            "int16" or "float32". By default what a `MoCo` was last trained on;
            for an encoder alone uint8, or float32 if it has a `value_range`.
        format: a second format to write: "onnx", for ONNX Runtime, which needs
            the packages tf2onnx, onnx and onnxruntime, or "litert", for LiteRT,
            which was called TensorFlow Lite.
        training: what to record of the training run, such as settings, data and
            metrics; a dict of what JSON can hold.

    Returns:
        The version's folder, a `Path`.

    Raises:
        FileExistsError: if the version exists.
        OSError: if the folder cannot be made, or not be written to.
        ImportError: if the format's converter or runtime is not installed.
        ValueError: if an argument is not one of the above; if the encoder does
            not take images of one size, or it is not known which range their
            pixels have, or its backbone cannot be told from its head; if Keras
            does not know one of its layers, or the format's runtime one of its
            operations; or if a part does not return what the encoder does. No
            version is left then.
    """
    encoder = getattr(model, "query_encoder", model)
    image_dtype = image_dtype or getattr(model, "image_dtype", None)
    exported = _Encoder(encoder, output, normalize, image_dtype)
    request = saved_model.request(path, version, format, training)
    if hasattr(model, "average_statistics"):  # a `MoCo`
        model.average_statistics()
    return saved_model.write(exported, request)


class _Encoder(Exported):
    kind = "encoder"
    result = "embedding"
    numbers = "embeddings"

    def __init__(self, encoder, output, normalize, image_dtype):
        super().__init__(encoder, image_dtype)
        if output not in _OUTPUTS:
            raise ValueError(
                f"`output` must be one of {', '.join(_OUTPUTS)}. "
                f"Received: output={output!r}."
            )
        backbone = derived.backbone(encoder)
        if output == "features":
            self.model = backbone
        elif len(encoder.layers) == len(backbone.layers):
            raise ValueError(
                'An encoder to export with output="projection" must have a '
                f"head. Received: {encoder!r}, which ends with its features. "
                'Take output="features": the loss compares these.'
            )
        self.output, self.normalize = output, normalize

    def finish(self, outputs):
        if self.normalize:
            return tf.math.l2_normalize(outputs, axis=1)
        return outputs

    def facts(self):
        return {
            "embedding_size": self.model.output_shape[1],
            "output": self.output,
            "normalized": self.normalize,
        }

    def introduction(self):
        what = {
            "features": "features of its backbone",
            "projection": "projection that the loss compares",
        }[self.output]
        length = "of length 1" if self.normalize else "not normalized"
        return "An image encoder that", (
            f"It embeds an image as {self.model.output_shape[1]} numbers: the "
            f"{what}, {length}."
        )
