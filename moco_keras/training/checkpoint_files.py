"""Tensors in files: written whole or not at all, and read only if intact.

TensorFlow's own format, which `tf.train.load_checkpoint` reads, with a checksum
of every tensor. `tf.train.Checkpoint` itself would write variables, of which it
knows one replica's values only, and its manager's list of what there is would
be one more file to be damaged.
"""

import re
import tempfile
import warnings
from pathlib import Path

import tensorflow as tf

from moco_keras import arguments
from moco_keras.keras_private import (
    CHECKPOINT_DATA,
    CHECKPOINT_INDEX,
    CHECKPOINT_PARTIAL,
)
from moco_keras.system import paths

_KEPT = 3


class CheckpointFiles:
    """The newest three snapshots of a dict of tensors, in a folder.

    Args:
        folder: made where it does not exist; ~ is the home folder.

    Raises:
        OSError: if the folder cannot be made, or not be written to.
    """

    def __init__(self, folder):
        self.folder = arguments.path(folder=folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Hours before there is something to write.
        with tempfile.TemporaryFile(dir=self.folder):
            pass

    def write(self, number, tensors):
        """Adds a snapshot, and removes the oldest.

        Args:
            number: larger than those of earlier ones.
            tensors: by name.

        Raises:
            OSError: if it cannot be written. Those before stay.
        """
        try:
            # TensorFlow would make the folder again, and write to what is no
            # longer the user's.
            self.folder.stat()
            with paths.plain(self.folder) as folder:
                tf.raw_ops.SaveV2(
                    prefix=str(folder / f"{number:09d}"),
                    tensor_names=list(tensors),
                    shape_and_slices=[""] * len(tensors),
                    tensors=list(tensors.values()),
                )
        except (OSError, tf.errors.OpError) as error:
            self._remove_partial()
            kept = self._prefixes()
            raise OSError(
                f"A checkpoint could not be written to {self.folder}: "
                f"{_reason(error)}. "
                + (f"{kept[0]} is still there. " if kept else "")
                + "Make the folder writable or make room, and start again."
            ) from error
        self.keep(_KEPT)

    def keep(self, newest):
        """Removes all but so many of the newest."""
        for prefix in self._prefixes()[newest:]:
            # The index first: without it the rest counts for nothing.
            for suffix in (CHECKPOINT_INDEX, CHECKPOINT_DATA):
                Path(prefix + suffix).unlink(missing_ok=True)

    def latest(self):
        """What the files of the newest begin with, or None; see `newest`."""
        return next(iter(self._prefixes()), None)

    def newest(self):
        """Reads the newest snapshot that is intact.

        Returns:
            NumPy arrays by name, or None where there is no snapshot.

        Raises:
            ValueError: if there are some, all damaged.
        """
        self._remove_partial()  # of a process that was killed
        prefixes = self._prefixes()
        for prefix in prefixes:
            try:
                with paths.plain(self.folder) as folder:
                    reader = tf.train.load_checkpoint(
                        str(folder / Path(prefix).name)
                    )
                    names = reader.get_variable_to_shape_map()
                    return {name: reader.get_tensor(name) for name in names}
            except (tf.errors.OpError, IndexError) as error:
                warnings.warn(
                    f"The checkpoint {prefix} is damaged and is passed over: "
                    f"{_reason(error)}.",
                    stacklevel=2,
                )
        if prefixes:
            raise ValueError(
                "A training run can resume only from what is intact. All "
                f"checkpoints in {self.folder} are damaged: "
                f"{', '.join(prefixes)}. Nothing was changed. Bring one back "
                "from a copy, or choose another folder to begin anew."
            )
        return None

    def _prefixes(self):
        """What the snapshots' files begin with, the newest first."""
        found = self.folder.glob(f"*{CHECKPOINT_INDEX}")
        return sorted((str(p.with_suffix("")) for p in found), reverse=True)

    def _remove_partial(self):
        for path in self.folder.glob(f"*{CHECKPOINT_PARTIAL}*"):
            path.unlink(missing_ok=True)


def _reason(error):
    """One line of TensorFlow's, which are long, or of the system's."""
    message = getattr(error, "message", None) or str(error)
    line = (message.splitlines() or [type(error).__name__])[0]
    # Without the operation, which says nothing to a reader.
    return re.sub(r"^{{.*?}} *| *\[Op:\w+\]$|\.$", "", line)
