"""How TensorFlow is imported: this comes before everything else."""

import contextlib
import os
import signal
import subprocess
import sys
import time

_BEGAN = time.monotonic()

# TensorFlow uses its oneDNN kernels unasked on some processors only; on the
# others they make a step about twice as fast.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# A program of ours decides what it prints; the logging of a script that imports
# this library is left alone. Only the command line tells which of them this is,
# because `python -m` imports the package before the program.
_PROGRAM = any(arg.startswith("moco_keras.recipes.") for arg in sys.orig_argv)
if _PROGRAM:
    # Warnings and errors only.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    # Ctrl-C ends it without a traceback, until its work begins.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

# Infos, absl's remark on them, and that there is no driver or no GPU: if there
# should be one, `accelerators.warn_of_unused_gpu` says so.
_GREETINGS = (
    rb"I\d{4} |WARNING: All log messages before absl::InitializeLog\(\)|"
    rb"E\d{4} .*cuInit: .*(\(303\)|CUDA_ERROR_NO_DEVICE)"
)
_FILTER = f"""
import re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is the program's
for line in sys.stdin.buffer:
    if not re.match({_GREETINGS!r}, line):
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
"""


def began():
    """The time at which the program began, as `time.monotonic` counts it.

    Outside of a program, it is the time of the call.
    """
    return _BEGAN if _PROGRAM else time.monotonic()


@contextlib.contextmanager
def without_greetings():
    """Keeps from a program's stderr what TensorFlow says while it starts.

    Its libraries speak as they are loaded, before they read
    TF_CPP_MIN_LOG_LEVEL. All else passes, from a process of its own, so that
    the last words of a process that is aborted do, too. With
    TF_CPP_MIN_LOG_LEVEL=0, and outside of programs, everything passes.
    """
    asked_for = os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"
    if not _PROGRAM or asked_for or sys.stderr is None:  # which is closed
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    passes_on = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _FILTER], stdin=subprocess.PIPE
    )
    os.dup2(passes_on.stdin.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        passes_on.communicate()


with without_greetings():
    import tensorflow  # noqa: F401
