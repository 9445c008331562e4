"""Requests that TensorFlow Serving answers before it is ready for others."""

import numpy as np
import tensorflow as tf

_BATCHES = (1, 32)


def write(folder, exported):
    """Adds `assets.extra/tf_serving_warmup_requests` to a SavedModel.

    Without the package tensorflow-serving-api, which defines their format,
    nothing is written, and the first callers wait longer.

    Args:
        folder: a `Path`, in which the SavedModel is.
        exported: an `Exported`.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        return
    (image,) = exported.noise(1)
    signatures = [("serving_default", "images", image)]
    if exported.decodes_files:
        encoded = tf.io.encode_jpeg(image).numpy()
        signatures.append(("serve_encoded", "image_bytes", encoded))
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in _BATCHES:
            for signature, name, value in signatures:
                values = np.stack([value] * batch)
                log = prediction_log_pb2.PredictionLog()
                request = log.predict_log.request
                request.model_spec.signature_name = signature
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
                writer.write(log.SerializeToString())
