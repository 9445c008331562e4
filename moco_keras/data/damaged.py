"""Images that turn out to be damaged when they are decoded.

A scan of a folder looks at the headers of files. What is damaged beyond them is
met while a model trains: another image of the batch stands in its place, so
that batches, orders and random numbers stay what they are, and a run can be
resumed.
"""

import os
import threading
import warnings
from pathlib import Path

import tensorflow as tf

from moco_keras.files import scanning
from moco_keras.system.paths import printable


class Damaged:
    """The damaged images of a folder that were met.

    Attributes:
        found: reasons, by `Path`.
        tell: function of a path and a reason, called once for each image. By
            default it warns.
    """

    def __init__(self):
        self.found = {}
        self.tell = _warn
        self._lock = threading.Lock()  # several batches are read at once

    def add(self, paths):
        """Adds files that could not be decoded.

        Args:
            paths: an array of bytes.
        """
        for path in paths:
            path = Path(os.fsdecode(path))
            with self._lock:
                if path not in self.found:
                    reason = scanning.why_not(path) or "Could not be read once"
                    self.found[path] = reason
                    self.tell(path, reason)


def _warn(path, reason):
    warnings.warn(
        f"Damaged, and skipped: {printable(path)}: {reason}", stacklevel=1
    )


def _of_length(x, others):
    """The same tensor, with the length of others if that is known."""
    return tf.ensure_shape(x, others.shape[:1].concatenate(x.shape[1:]))


def decoded(stream, parts, then, size):
    """Decodes examples, in parallel and in their order.

    Args:
        stream: `ImageStream`, whose they are.
        parts: `tf.data.Dataset` of batches of numbered examples: a pair of
            int64 (N,) and of what `stream.encoded` yields, batched.
        then: function of a number and a decoded example, whose results have the
            same shapes for all images.
        size: N of whole batches.

    Returns:
        A `tf.data.Dataset` of batches of what `then` returns. An image that
        cannot be decoded is replaced by the next one of its batch, or by the
        last. If none can be, reading ends with an error that names one.
    """

    def one(number, example):
        return then(number, stream.decode(example))

    numbers, _ = parts.element_spec
    is_whole = numbers.shape[0] is not None
    if stream.damaged is None:
        return (
            parts.unbatch()
            .map(one, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(size, drop_remainder=is_whole)
        )

    def batch(numbers, examples):
        rows = tf.range(tf.shape(numbers)[0])
        given = tf.data.Dataset.from_tensor_slices((rows, numbers, examples))

        def readable(some, skip):
            some = some.map(
                lambda row, number, x: (row, number, stream.decode(x)),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            # An error in `then` is not the file's.
            return (some.ignore_errors() if skip else some).map(
                lambda row, *numbered: (row, then(*numbered)),
                num_parallel_calls=tf.data.AUTOTUNE,
            )

        def complete(good, found):
            """Fills the gaps between the rows that are good."""
            near = tf.searchsorted(good, rows)
            near = tf.minimum(near, tf.shape(good)[0] - 1)
            lost = tf.gather(good, near) != rows
            missing = tf.boolean_mask(examples["path"], lost)
            tell = tf.cond(
                tf.reduce_any(lost),
                lambda: tf.group(
                    tf.numpy_function(stream.damaged.add, [missing], [])
                ),
                tf.no_op,
            )
            with tf.control_dependencies([tell]):
                return tf.nest.map_structure(
                    lambda x: _of_length(tf.gather(x, near), numbers), found
                )

        # If none can be read, the first one has its error.
        return (
            readable(given, skip=True)
            .batch(tf.size(rows, "int64"))
            .concatenate(readable(given.take(1), skip=False).batch(1))
            .take(1)
            .map(complete)
        )

    # While the last images of a batch are read, the next batch begins.
    return parts.interleave(
        batch, cycle_length=2, block_length=1, num_parallel_calls=2
    )
