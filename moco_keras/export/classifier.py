"""The export of classifiers."""

import os
from collections import Counter

import numpy as np
import tensorflow as tf

from moco_keras.export import saved_model
from moco_keras.export.exported import Exported
from moco_keras.models import classifier as classifiers
from moco_keras.system.paths import printable


def export_classifier(
    model,
    path,
    class_names,
    version=None,
    *,
    image_dtype=None,
    format=None,
    training=None,
):
    """Writes a classifier as a new version of a SavedModel.

    The version is a folder as `export_encoder` writes it, for TensorFlow
    Serving and for programs without Keras and without this library:

        classifier = tf.saved_model.load("path/1")
        classify = classifier.signatures["serve_encoded"]
        classify(image_bytes=tf.constant([JPEG]))["classes"][0, 0]  # the best

    Its signatures take the same inputs, `serving_default` `images`, (N, H, W,
    C), and `serve_encoded` `image_bytes`, string (N,), and fail on the same
    ones. Both return:

    - `probabilities`, float32 (N, classes): the softmax of the logits, in the
      order of `class_names`.
    - `classes`, string (N, classes): the names by falling probability, of
      equals the earlier in `class_names` first. Names are in UTF-8, and names
      of folders whatever bytes they are, because `os.fsencode` encodes them.

    For no images, N = 0, both return no rows, (0, classes), and so does ONNX
    Runtime; LiteRT refuses them. Batch norm runs in inference mode, and
    drop-out does nothing.

    Beside it are `classifier.keras`, the same classifier for further training,
    which returns logits and is to be compiled again; its record,
    `classifier.json`, with all names, and `README.md`; and requests with which
    a server warms up, if the package tensorflow-serving-api is installed. If
    requested, there is also a file for another runtime, `classifier.onnx` or
    `classifier.tflite`: from `images` to `probabilities`, computed in float32.

    The SavedModel computes in float32, and `classifier.keras` in the precision
    of the classifier. Every part is loaded again, and must classify a batch as
    the model does, before the version gets its number.

    Args:
        model: a classifier from `build_classifier`, usually trained.
        path: folder of all versions.
        class_names: a list of texts, one for each output, in their order.
        version: its number, 1 or more; by default the one after the highest.
        image_dtype: as in `export_encoder`.
        format: a second format to write, "onnx" or "litert", as in
            `export_encoder`.
        training: what to record of the training run, such as settings, data and
            accuracy; a dict of what JSON can hold.

    Returns:
        The version's folder, a `Path`.

    Raises:
        FileExistsError: if the version exists.
        OSError: if the folder cannot be made, or not be written to.
        ImportError: if the format's converter or runtime is not installed.
        ValueError: if an argument is not one of the above; if two names are
            alike; if the model does not take images of one size, pixels of a
            known range, or does not end with its logits; if Keras does not know
            one of its layers, or the format's runtime one of its operations; or
            if a part does not return what the model does. No version is left
            then.
    """
    exported = _Classifier(model, class_names, image_dtype)
    request = saved_model.request(path, version, format, training)
    return saved_model.write(exported, request)


class _Classifier(Exported):
    kind = "classifier"
    result = "probabilities"
    numbers = "logarithms of probabilities"

    def __init__(self, model, class_names, image_dtype):
        super().__init__(model, image_dtype)
        last, shape = model.layers[-1].name, model.output_shape
        if last != classifiers.HEAD or not _is_matrix(shape):
            raise ValueError(
                "An exported classifier must end with a layer called "
                f"{classifiers.HEAD!r}, which returns (N, classes). Received: "
                f"{model!r}, which ends with {last!r} and returns {shape}. "
                "Build it with `build_classifier`, and leave the softmax out."
            )
        self.class_names = _texts(class_names, shape[1])

    def finish(self, outputs):
        return tf.nn.softmax(outputs)

    def more(self, results):
        order = tf.argsort(results, direction="DESCENDING", stable=True)
        names = tf.constant([os.fsencode(name) for name in self.class_names])
        return {"classes": tf.gather(names, order)}

    def comparable(self, results):
        # As the logits: where one class is nearly certain, the probabilities of
        # a wrong part would look right.
        return np.log(np.maximum(results, np.finfo("float32").tiny))

    def facts(self):
        return {"classes": self.class_names}

    def introduction(self):
        return "An image classifier whose encoder", (
            f"It gives each of {len(self.class_names)} classes a probability."
        )

    def section(self):
        width = len(str(len(self.class_names) - 1))
        return [
            "## Classes",
            "",
            "`probabilities` are in this order. `classes` are the names by "
            "falling probability. `classifier.keras` returns logits; "
            "`probabilities` are their softmax.",
            "",
            *(
                f"    {number:{width}}  {printable(name)}"
                for number, name in enumerate(self.class_names)
            ),
            "",
        ]


def _is_matrix(shape):
    return isinstance(shape, tuple) and len(shape) == 2 and bool(shape[1])


def _texts(class_names, number):
    """The names as a list of `str`, checked."""
    if not isinstance(class_names, (list, tuple, np.ndarray)):
        raise _refusal(number, repr(class_names))
    for name in class_names:
        if not isinstance(name, str):
            raise _refusal(number, f"{name!r} among them")
    if len(class_names) != number:
        raise _refusal(number, f"{len(class_names)} names")
    try:
        encoded = [os.fsencode(name) for name in class_names]
    except UnicodeEncodeError as error:
        raise _refusal(number, repr(error.object)) from error
    ((name, times),) = Counter(encoded).most_common(1)
    if times > 1:
        raise _refusal(number, f"{os.fsdecode(name)!r} {times} times")
    return [str(name) for name in class_names]


def _refusal(number, received):
    return ValueError(
        "`class_names` must be a list of texts that UTF-8 can hold, all "
        f"different, one for each of the classifier's {number} outputs, in "
        f"their order. Received: {received}."
    )
