"""Exported encoders, loaded as frozen layers."""

import contextlib
import json
import re
from pathlib import Path

import keras
import tensorflow as tf

from moco_keras import arguments, keras_private
from moco_keras.system import paths, versions
from moco_keras.system.paths import printable


def load_encoder(path, version=None, *, encoded=False):
    """Loads what `export_encoder` wrote, as a frozen Keras layer.

    The layer is a function of images, and can be a part of other models:

        encoder = load_encoder("saved_models/my_encoder")
        embeddings = encoder(images)

        inputs = keras.Input((32, 32, 3), dtype="uint8")
        outputs = keras.layers.Dense(10)(encoder(inputs))

    A model that it is a part of can be saved. The file names the version's
    folder, and loads as long as that is there:

        model.save("probe.keras")
        keras.models.load_model("probe.keras", safe_mode=False)

    To train the encoder, too, or to have all in one file, load `encoder.keras`
    from the version's folder with `keras.models.load_model`.

    Args:
        path: folder of all versions, of one, or of a run.
        version: its number; by default the highest.
        encoded: whether the layer takes image files, string (N,), instead of
            images, (N, H, W, C), of the type that the export takes.

    Returns:
        A `FrozenEncoder`, a layer that returns embeddings, float32 (N, D).

    Raises:
        FileNotFoundError: if there is no such version.
        ValueError: if it is damaged, cannot be read, or is a classifier.
    """
    path = arguments.path(path=path)
    folder = versions.find(path, version)
    if folder is None:
        there = sorted(versions.numbers(path)) or "none"
        raise FileNotFoundError(
            "`path` must be a folder that `export_encoder` wrote, and "
            f"`version` one of those in it. Received: path={printable(path)}, "
            f"version={version}. There are {there}."
        )
    if (folder / "classifier.json").is_file():
        raise ValueError(
            "`path` must be that of an encoder. Received: "
            f"{printable(folder)}, which `export_classifier` wrote. Load its "
            "classifier.keras with `keras.models.load_model`, or call its "
            "signatures, as its README.md shows."
        )
    if encoded and not _decodes_files(folder):
        raise ValueError(
            "`encoded` needs an encoder of uint8 images with one or three "
            f"channels. Received: {printable(folder)}, which takes others. "
            "Decode the files, and pass images."
        )
    endpoint = "serve_encoded" if encoded else "serving_default"
    # The full path: a model that holds it may be loaded in another directory.
    with reading(folder):
        return FrozenEncoder(str(folder.resolve()), endpoint)


def _decodes_files(folder):
    """Whether an export has the signature that takes image files."""
    try:
        record = json.loads((folder / "encoder.json").read_text())
        return "serve_encoded" in record["signatures"]
    except (OSError, ValueError, KeyError, TypeError):
        return True  # as loading it will show


@contextlib.contextmanager
def reading(folder):
    """Raises an error that names an export, if it cannot be read.

    Args:
        folder: path of its version.

    Raises:
        ValueError: whatever error is raised within the context.
    """
    try:
        yield
    except Exception as error:  # in a damaged file any part may fail
        lines = str(error).strip().splitlines() or [repr(error)]
        # Without the name of the operation.
        reason = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", lines[0]).rstrip(".")
        raise ValueError(
            "An exported encoder must be whole. Received: "
            f"{printable(folder)}, which is damaged or cannot be read: "
            f"{reason}. Bring it back from a copy, or export it again: "
            "`python -m moco_keras.recipes.export --model=RUN`."
        ) from error


@keras.saving.register_keras_serializable(package="moco_keras")
class FrozenEncoder(keras.layers.TFSMLayer):
    """An exported encoder as a layer: from images to embeddings.

    `load_encoder` makes one. It is not trained with the model that it is a part
    of, and its batch norm runs in inference mode.

    Args:
        filepath: folder of a version.
        call_endpoint: "serving_default", which takes images, or
            "serve_encoded", which takes image files.
        kwargs: as in `keras.layers.Layer`.

    Attributes:
        exported_dtype: of the images that it takes, or "string"; a name.

    Raises:
        FileNotFoundError: if the version is not there.
        ValueError: if it comes from a file that is loaded in safe mode.
    """

    def __init__(
        self,
        filepath,
        call_endpoint="serving_default",
        **kwargs,
    ):
        if not versions.is_export(Path(filepath)):
            raise FileNotFoundError(
                "The exported encoder that a model holds must be where it was. "
                f"Received: {printable(filepath)}, where there is none. "
                "Move it back; or build the model again, on `load_encoder` of "
                "where it is now, and give that the weights: "
                "`model.load_weights(FILE)`."
            )
        kwargs["trainable"] = False
        with paths.plain(filepath) as folder:
            super().__init__(str(folder), call_endpoint, **kwargs)
        self.autocast = False  # a policy of half precision would round images
        self.filepath = filepath
        (function,) = self.call_endpoint_fn.concrete_functions
        (spec,) = tf.nest.flatten(function.structured_input_signature)
        self.exported_dtype = spec.dtype.name
        # XLA cannot decode image files.
        self.supports_jit = call_endpoint != "serve_encoded"

    @property
    def trainable(self):
        """Always False, whatever a model around it is set to."""
        return False

    @trainable.setter
    def trainable(self, value):
        pass

    def call(self, inputs, training=False):
        if inputs.dtype != self.exported_dtype:
            inputs = _as_exported(inputs, tf.as_dtype(self.exported_dtype))
        return super().call(inputs)["embedding"]

    def get_config(self):
        config = super().get_config()
        for name in ("call_training_endpoint", "trainable"):
            del config[name]
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None, safe_mode=None):
        # Keras's own `from_config` accepts only files that are loaded with
        # `safe_mode=False`. `clone_model`, which loads no file, fails with it.
        if safe_mode or keras_private.in_safe_mode():
            raise ValueError(
                "A model that holds an exported encoder must be loaded with "
                "`safe_mode=False`, because a SavedModel is a program, which "
                "may write files. Received: safe_mode=True, and a model that "
                f"holds {printable(config['filepath'])}. If you trust both: "
                "`keras.models.load_model(FILE, safe_mode=False)`."
            )
        return cls(**config)


def _as_exported(images, dtype):
    """The images in the type of the export: Keras builds models with floats."""
    pixels = tf.cast(images, dtype)
    whole = "whole " * dtype.is_integer
    remedy = ""
    if dtype == "uint8":
        remedy = (
            " For floats in [0, 1], pass "
            "`tf.cast(tf.round(255 * images), tf.uint8)`."
        )
    check = tf.debugging.assert_equal(
        tf.cast(pixels, images.dtype),
        images,
        f"This exported encoder takes images as {dtype.name}, or as {whole}"
        f"numbers that {dtype.name} holds.{remedy}",
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(pixels)
