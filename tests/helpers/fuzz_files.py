"""Reads thousands of damaged image files of each kind.

    PYTHONPATH=.:tests/files python tests/helpers/fuzz_files.py --count=2000

Each is read or refused; a crash ends the program. It prints how many were
refused, and how much memory reading them took.
"""

import collections
import io
import resource

import numpy as np
import test_reading
from absl import app, flags

from moco_keras.files import reading
from moco_keras.files.header import NotAnImageError

_COUNT = flags.DEFINE_integer("count", 2000, "files of each kind")
_SEED = flags.DEFINE_integer("seed", 0, "of what is damaged")
_MOST = 600  # MB


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main(_):
    """Damages, reads and counts."""
    rng = np.random.default_rng(_SEED.value)
    for kind, file in test_reading.files_to_damage().items():
        contents, before = file.getvalue(), _peak()
        results = collections.Counter()
        for _ in range(_COUNT.value):
            damaged = test_reading.damaged(contents, rng)
            try:
                reading.read(io.BytesIO(damaged))
                results["read"] += 1
            except NotAnImageError:
                results["refused"] += 1
        taken = _peak() - before
        print(f"{kind}: {dict(results)}, {taken:.0f} MB", flush=True)
        assert taken < _MOST, "reading damaged files took too much memory"


if __name__ == "__main__":
    app.run(main)
