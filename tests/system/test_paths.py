"""Paths with any name, and places that are not writable."""

import errno

import pytest

from moco_keras.system import paths

MESSAGE = "It must be writable. Received: {place}: {reason}. Move it."


@pytest.mark.parametrize("name", ["plain", "{0} {x}", "a\nb"])
def test_a_system_error_gets_the_message(name, tmp_path):
    with pytest.raises(OSError) as caught:
        with paths.readable_write_errors(tmp_path / name, MESSAGE):
            raise OSError(errno.ENOSPC, "No space left on device")
    place = paths.printable(tmp_path / name)
    expected = MESSAGE.replace("{place}", place)
    expected = expected.replace("{reason}", "No space left on device")
    assert str(caught.value) == expected


def test_an_error_of_our_own_is_unchanged(tmp_path):
    with pytest.raises(FileExistsError, match=r"^own words$"):
        with paths.readable_write_errors(tmp_path, MESSAGE):
            raise FileExistsError("own words")


class OtherError(Exception):
    message = "it is full"


def test_other_errors_get_the_message_if_listed(tmp_path):
    with pytest.raises(OtherError):
        with paths.readable_write_errors(tmp_path, MESSAGE):
            raise OtherError
    with pytest.raises(OSError, match=r"Received: .*: it is full\. Move it\."):
        with paths.readable_write_errors(tmp_path, MESSAGE, (OtherError,)):
            raise OtherError
