"""Paths of any name, for TensorFlow and for people."""

import contextlib
import os
import re
import tempfile
from pathlib import Path


@contextlib.contextmanager
def plain(folder):
    """Gives a path to a folder that TensorFlow takes literally.

    TensorFlow takes `*`, `?`, `[` and a backslash for patterns, and refuses
    names that are not UTF-8. While the context lasts, a folder with such a path
    has a link to it.

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


@contextlib.contextmanager
def readable_write_errors(place, message, also=()):
    """Has errors of writing to a place say what to do.

    Args:
        place: path of what is written to while the context lasts.
        message: of the error, with {place} and {reason} in it.
        also: tuple of errors that mean the same, such as TensorFlow's, whose
            `message` is the reason.

    Raises:
        OSError: with the message, for an error of the system. One that this
            library raises has its own words, and passes.
    """
    try:
        yield
    except (OSError, *also) as error:
        attribute = "strerror" if isinstance(error, OSError) else "message"
        reason = getattr(error, attribute)
        if reason is None:
            raise
        place = printable(place)
        raise OSError(message.format(place=place, reason=reason)) from error


def printable(path):
    """A path as one line of text, whatever the bytes of its name."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    # Control characters, ends of lines, and changes of direction.
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]",
        lambda c: repr(c[0])[1:-1],
        text,
    )
