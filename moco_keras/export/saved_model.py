"""SavedModels for TensorFlow Serving and others, written as versions."""

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from moco_keras import arguments
from moco_keras.export import (
    model_card,
    runtimes,
    serving_signatures,
    serving_warmup,
    verification,
)
from moco_keras.models import model_state
from moco_keras.system import ownership, paths, versions

_NOT_WRITABLE = (
    "A folder of exported versions must be one that can be written to. "
    "Received, for {place}: {reason}. Nothing was exported, and what it held "
    "before is as it was. Make it writable, make room, or choose another."
)
_TENSORFLOW_ERRORS = (
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
)


class Request(NamedTuple):
    """What every kind of export is asked for.

    Attributes:
        path: folder of all versions.
        version: number of this one, or None for the next.
        format: for another runtime, one of `runtimes.SUFFIXES`, or None.
        training: the user's record of the training run; JSON values by name.
    """

    path: Path
    version: int | None
    format: str | None
    training: dict


def request(path, version, format, training):
    """Checks arguments of users, and makes a `Request` of them.

    Raises:
        FileExistsError: if the version exists.
        ImportError: if the format's converter or runtime is not installed.
        ValueError: if one of them is not as `Request` describes it.
    """
    if version is not None:
        version = arguments.whole(arguments.VERSION, version=version)
    if format is not None:
        runtimes.check(format)
    path = arguments.path(path=path)
    if version is not None and (path / str(version)).exists():
        raise versions.exists(path / str(version))
    return Request(path, version, format, _json(training or {}))


def write(exported, request):
    """Writes a version, and verifies each of its parts against the model.

    Args:
        exported: an `Exported`.
        request: a `Request`.

    Returns:
        The version's folder, a `Path`.

    Raises:
        FileExistsError: if the version exists by now.
        OSError: if the folder cannot be made, or not be written to.
        ValueError: if a part cannot be written, or does not return what the
            model does. No version is left then.
    """
    path, kind = request.path, exported.kind
    images = exported.noise(3)
    # A server looks at names that are numbers only.
    with (
        paths.readable_write_errors(path, _NOT_WRITABLE, _TENSORFLOW_ERRORS),
        ownership.made(path),
        ownership.scratch(path) as scratch,
        paths.plain(scratch) as folder,
    ):
        partial = folder / "version"
        results = exported.function(exported.model)(images)[exported.result]
        verification.check_finite(exported, results)
        with _errors_of_layers(exported):
            float32 = model_state.with_float32(exported.model)
        signatures, expected = serving_signatures.write(
            exported, float32, images, partial
        )
        serving_warmup.write(partial, exported)
        with _errors_of_layers(exported):
            loaded = _write_keras(exported.model, partial / f"{kind}.keras")
        # In the precision of the model: between two precisions, rounding may
        # change results by more than any tolerance. That the copy in float32
        # has the model's state follows, since it is copied the same way.
        verification.check(
            exported,
            f"{kind}.keras",
            exported.function(loaded)(images)[exported.result],
            results,
            verification.tolerance_of(exported.model),
        )
        file = None
        if request.format is not None:
            file = runtimes.write(
                exported, float32, images, expected, request.format, partial
            )
        model_card.write(
            exported,
            partial,
            path.resolve().name,
            signatures=signatures,
            file=file,
            training=request.training,
        )
        return versions.add_version(partial, path, request.version)


def _write_keras(model, path):
    """Writes the model for fine-tuning; returns what others will load."""
    model_state.with_whole_batches(model).save(path)
    return keras.models.load_model(path)


@contextlib.contextmanager
def _errors_of_layers(exported):
    """Raises an error that says what Keras needs to copy or load a layer."""
    try:
        yield
    except (NotImplementedError, TypeError, ValueError) as error:
        cause = error
        while cause.__context__ is not None:  # the model's, its part's, ...
            cause = cause.__context__
        raise ValueError(
            f"An exported {exported.kind} must have layers that Keras can "
            "load. Received one that it cannot: "
            f"{str(cause).partition('. ')[0]}. "
            "Put `@keras.saving.register_keras_serializable()` before the "
            "class of each layer of your own, and give it a `get_config`."
        ) from error


def _json(training):
    try:
        return json.loads(json.dumps(training, default=_plain))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`training` must be a dict of numbers, texts, lists and dicts. "
            f"Received: {error}."
        ) from error


def _plain(number):
    if not isinstance(number, np.generic):
        raise TypeError(f"{number!r}, which JSON cannot hold")
    return number.item()
