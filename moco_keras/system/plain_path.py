"""Folders of any name, for TensorFlow."""

import contextlib
import re
import tempfile
from pathlib import Path


@contextlib.contextmanager
def of(folder):
    """Gives a path to a folder that TensorFlow takes as it is.

    TensorFlow takes `*`, `?`, `[` and a backslash for patterns, and no name
    that is not UTF-8. To a folder of such a path there is a link meanwhile.

    Args:
        folder: its path.
    """
    folder = Path(folder)
    if not re.search(r"[*?[\\\ud800-\udfff]", folder.as_posix()):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place, "link")
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link
