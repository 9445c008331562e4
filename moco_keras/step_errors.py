"""Errors of compiled steps, in words that say what to do."""

import contextlib

import tensorflow as tf

# Names of operations that fail where sizes do not fit.
TOO_MANY_KEYS = "queue_size_must_hold_the_keys_of_a_whole_step"
INDIVISIBLE = "splits_must_divide_the_batch_size"
_SIZES = {
    TOO_MANY_KEYS: "`queue_size` must hold the keys of a whole step. "
    "Received: {}. Raise `queue_size` or use smaller batches.",
    INDIVISIBLE: "`splits` of batch norm must divide every batch. "
    "Received: {}. Leave a smaller last batch out, with "
    "`dataset.batch(256, drop_remainder=True)` for example.",
}


@contextlib.contextmanager
def readable_file_errors():
    """Raises a readable error if a file of images is missing.

    Raises:
        FileNotFoundError: in place of TensorFlow's error.
    """
    try:
        yield
    except tf.errors.NotFoundError as error:
        lines = error.message.splitlines()
        line = next((x for x in lines if "No such file" in x), None)
        if line is None:
            raise  # something else was not found
        raise FileNotFoundError(
            "Images must stay where they are until training ends. "
            f"Received: {line.split(': ')[-1]}, which is missing. Bring the "
            "images back, and start again."
        ) from error


@contextlib.contextmanager
def readable_size_errors():
    """Raises a readable error if a batch whose size was unknown does not fit.

    Raises:
        ValueError: in place of TensorFlow's error.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        lines = error.message.splitlines()
        received = next((line for line in lines if "but got" in line), None)
        for operation, message in _SIZES.items():
            if operation in error.message and received:
                raise ValueError(message.format(received)) from error
        raise
