"""How every program begins and ends."""

import signal
import sys

import tensorflow as tf
from absl import app, logging

from moco_keras import accelerators, startup
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
        try:
            work(_settings.from_flags(type(defaults)))
        except (
            ValueError,
            OSError,
            ImportError,
            FloatingPointError,
            tf.errors.OpError,
        ) as error:
            logging.debug("Where it happened:", exc_info=True)
            print(
                f"\nError: {error}\n"
                "(To see where it happened, add --verbosity=1.)",
                file=sys.stderr,
            )
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    app.run(main, flags_parser=parse_flags)


def parse_flags(argv):
    """What `app.run` parses flags with; looks for GPUs, too, and quietly."""
    others = app.parse_flags_with_usage(argv)
    # Not in `main`: TensorFlow has `app.run` look for them before.
    with startup.without_greetings():
        accelerators.warn_of_unused_gpu()
    return others
