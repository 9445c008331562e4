"""How every program begins and ends."""

import codecs
import errno
import io
import signal
import sys
import warnings

import tensorflow as tf
from absl import app, flags, logging

from moco_keras.distribution import accelerators
from moco_keras.recipes import _flags
from moco_keras.system import signals, startup

# Values of a flag that asks for help, as absl takes them; it would exit with 1.
_ASKED = [], ["true"], ["t"], ["1"]


def run(defaults, work):
    """Runs a program: reads its flags, works, and ends with an exit code.

    Args:
        defaults: the settings, of which the flags are made.
        work: function of the settings that the command line asks for.
    """
    logging.set_verbosity(logging.WARNING)  # --verbosity=0 for more
    _flags.define(defaults)
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
    # Whoever runs a program does not look for the line that warned.
    warnings.formatwarning = lambda message, *_: f"\nWarning: {message}\n"

    def main(argv):
        try:
            if len(argv) > 1:
                raise ValueError(f"Expected flags only. Received: {argv[1:]}.")
            with signals.answered():
                work(_flags.read(type(defaults)))
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
    given = [a.lstrip("-").split("=") for a in argv[1:] if a.startswith("-")]
    asked = {name for name, *value in given if value in _ASKED}
    if "helpxml" in asked:
        flags.FLAGS.write_help_in_xml_format(sys.stdout)
        sys.exit()
    if asked & {"help", "helpshort", "helpfull", "?"}:
        print(sys.modules["__main__"].__doc__)
        if "helpfull" in asked:
            print(flags.FLAGS.get_help())
        else:
            print(flags.FLAGS.main_module_help())
            print("\n--helpfull lists the flags of absl, too.")
        sys.exit()
    try:
        others = flags.FLAGS(argv)
    except flags.Error as error:
        print(f"\nError: {error}\n(--help lists the flags.)", file=sys.stderr)
        sys.exit(1)
    # Not in `main`: TensorFlow has `app.run` look for them before.
    with startup.without_greetings():
        accelerators.warn_of_unused_gpu()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see `startup`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return others


class _Outlet(io.FileIO):
    """Where a program prints to, which does not end it by being closed."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            # Nobody reads the pipe any more, or the terminal is gone.
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return len(data)


def _lasting(stream):
    """The same stream, which takes every text, and outlasts its reader."""
    if stream is None:  # it was closed
        return None
    stream.flush()
    raw = _Outlet(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="escape",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _escape(error):
    """Writes what an encoding lacks as Python's strings do."""
    # Keras's progress bars are as Keras has them in such an encoding.
    text = error.object[error.start : error.end].replace("━", "=")
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("escape", _escape)
