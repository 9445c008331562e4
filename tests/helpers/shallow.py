"""Runs a program with shallow networks.

    python tests/helpers/shallow.py moco_keras.recipes.textures FLAGS

Tests do so where the depth of a network is not what they check.
"""

import runpy
import sys
from unittest import mock

from moco_keras.models import resnet


def networks():
    """A context in which a ResNet-18 has two of its eight blocks.

    A tiny run spends most of its time on tracing layer by layer.
    """
    block, depths = resnet._BLOCKS["resnet18"]
    assert depths == (2, 2, 2, 2)
    return mock.patch.dict(resnet._BLOCKS, resnet18=(block, (1, 1)))


if __name__ == "__main__":
    del sys.argv[0]
    with networks():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
