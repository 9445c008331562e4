"""Ctrl-C and SIGTERM, answered at once whatever the main thread is doing.

Python runs handlers in the main thread, between two of its own instructions,
and a step is a single one, of seconds or of minutes while it is compiled. So a
thread answers: the system writes the number of each signal to a socket that it
reads.
"""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time

# Seconds that the main thread has to act on a signal that is to act at once.
_PATIENCE = 1.0
# Seconds in which signals count as one: `timeout` and others send each twice,
# to a program and to its group.
_TOGETHER = 0.2
# Functions that return what to say when the process ends here, of each context
# that is entered.
_last_words = []


@contextlib.contextmanager
def answered(handler=None, answer="Stopping ...", last_words=None):
    """Answers SIGINT and SIGTERM while it is entered.

    The first signal is given to `handler`, or ends the program without one. A
    second signal, unless it is sent along with the first, always ends it: by
    the handler that was set before, or, if the main thread has not left within
    a second, by ending the process.

    Args:
        handler: function of the number of the first signal, called in the main
            thread as soon as it can be. Without one, the signal raises
            `KeyboardInterrupt`, or `SystemExit` of code 143.
        answer: what is printed when the first signal comes; without a handler,
            only if the main thread cannot act within a second.
        last_words: function that returns what to print when the process ends
            here, and, with a handler, at every signal after the first. None
            prints nothing.

    In another thread than the main one, and for a signal that is ignored,
    nothing is set. Everything is as it was afterwards.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {
            number: signal.getsignal(number)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
    # Ignored, as SIGINT is by a shell's background jobs, it stays.
    kept = signal.SIG_IGN, None
    handlers = {n: h for n, h in handlers.items() if h not in kept}
    if not handlers:
        yield
        return
    handled, there = [], threading.Condition()
    raised = []  # by handlers
    left = threading.Event()
    repeats = _repeats(), _repeats()  # as they are handled, and as they come

    def handle(number, frame):
        if repeats[0]():
            return
        is_first = not handled
        with there:
            handled.append(number)
            there.notify()
        try:
            if handler is not None and is_first:
                handler(number)
            elif callable(handlers[number]):
                handlers[number](number, frame)
            elif number == signal.SIGINT:
                raise KeyboardInterrupt
            else:
                raise SystemExit(128 + number)
        except BaseException as error:
            raised.append(error)
            raise

    def acts():
        """Whether the main thread runs the handler in time."""
        with there:
            return there.wait_for(lambda: handled, _PATIENCE)

    def answer_each():
        count = 0
        while number := own.recv(1)[0]:
            if number not in handlers:
                if before != -1:
                    os.write(before, bytes([number]))
                continue
            if repeats[1]():
                continue
            count += 1
            if count == 1:
                if handler is not None or not acts():
                    _say(answer)
                continue
            if handler is not None and last_words is not None:
                _say(last_words())
            # A handler's exception may be swallowed, as in a finalizer.
            if not left.wait(_PATIENCE):
                _end(number, said=handler is not None and last_words)

    own, other = socket.socketpair()
    other.setblocking(False)
    with own, other:
        before = signal.set_wakeup_fd(other.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=answer_each, daemon=True)
        thread.start()
        _last_words.append(last_words)
        for number in handlers:
            signal.signal(number, handle)
        try:
            yield
        except Exception as error:
            # TensorFlow raises another error if a signal ends what it traces.
            for interruption in _led_to(error):
                if interruption in raised:
                    raise interruption from None
            raise
        finally:
            left.set()
            for number, before_it in handlers.items():
                signal.signal(number, before_it)
            signal.set_wakeup_fd(before)
            _last_words.pop()
            other.send(b"\0")
            thread.join()


def _led_to(error):
    """The exceptions in whose handling an error was raised, the last first."""
    while error := error.__context__:
        yield error


def _repeats():
    """A function that tells whether a call comes along with one before.

    Such a call does not restart the clock: a held Ctrl-C counts again, in time.
    """
    first = [-math.inf]

    def repeats():
        now = time.monotonic()
        if now - first[0] < _TOGETHER:
            return True
        first[0] = now
        return False

    return repeats


def _say(words):
    print(f"\n{words}", file=sys.stderr, flush=True)


def _end(number, said):
    """Ends the process while its main thread is in a long call."""
    for words in reversed(_last_words):
        if words is not None and words is not said:
            _say(words())
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(128 + number)
