import numpy as np
import pytest

from moco_keras import arguments


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_whole_numbers_of_any_kind(number):
    result = arguments.whole(size=number)
    assert result == 3 and type(result) is int


@pytest.mark.parametrize("number", [0, -1, 1.0, "1", None, True, np.float64(3)])
def test_what_is_no_positive_integer(number):
    with pytest.raises(ValueError, match="`size` must be a positive integer"):
        arguments.whole(size=number)


def test_other_bounds():
    assert arguments.whole(0, seed=0) == 0
    with pytest.raises(ValueError, match="from 0 on. Received: seed=-1"):
        arguments.whole(0, seed=-1)


@pytest.mark.parametrize(
    "number", [2, 2.0, np.float32(2), np.float64(2), np.int8(2), np.array(2.0)]
)
def test_numbers_of_any_kind(number):
    result = arguments.real(rate=number)
    assert result == 2 and type(result) is float


@pytest.mark.parametrize("number", ["2", None, [2.0], np.zeros(2)])
def test_what_is_no_number(number):
    with pytest.raises(ValueError, match="`rate` must be a number.*rate="):
        arguments.real(rate=number)
