"""How every program begins and ends."""

import signal
import sys

import tensorflow as tf
from absl import app, logging

from moco_keras import accelerators
from moco_keras.recipes import _settings


def run(defaults, work):
    """Runs a program: reads its flags, works, and ends with an exit code.

    Args:
        defaults: the settings, of which the flags are made.
        work: function of the settings that the command line asks for.
    """
    logging.set_verbosity(logging.WARNING)  # --verbosity=0 for more
    _settings.define_flags(defaults)

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
        accelerators.warn_of_unused_gpu()
        try:
            work(_settings.from_flags(type(defaults)))
        except (
            ValueError,
            OSError,
            ImportError,
            FloatingPointError,
            tf.errors.OpError,
        ) as error:
            logging.debug("Where it happened:", exc_info=True)  # --verbosity=1
            print(f"\nError: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    app.run(main)
