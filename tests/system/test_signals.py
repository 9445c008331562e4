"""Ctrl-C and SIGTERM, answered while the main thread is in a long call."""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import programs
import pytest

from moco_keras.system import signals

pytestmark = pytest.mark.usefixtures("ctrl_c")


@pytest.fixture
def said(monkeypatch):
    """The messages, each with its time."""
    said = []
    monkeypatch.setattr(
        signals, "_say", lambda words: said.append((words, time.monotonic()))
    )
    return said


def long_call(rounds=1_500_000):
    """One Python instruction of about a second, like a training step."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)


def send(*numbers):
    """Sends signals to this process from another thread, soon."""

    def wait_and_send():
        for number in numbers:
            time.sleep(0.1)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait_and_send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_within_a_long_call(said, number):
    noted = []
    before = signal.getsignal(number)
    with signals.answered(noted.append, "Stopping"):
        thread = send(number)
        long_call()
        ended = time.monotonic()
        thread.join()
    assert noted == [number]
    ((words, when),) = said
    assert words == "Stopping"
    assert when < ended - 0.1
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
@pytest.mark.parametrize("note", [None, lambda number: None])
def test_the_signal_that_acts_raises(said, number, error, note):
    """That is the first without a `note`, and the second with one."""
    count = 1 + (note is not None)
    with (
        pytest.raises(error) as caught,
        signals.answered(note, "Stopping", lambda: "Stopped"),
    ):
        for _ in range(count):
            signal.raise_signal(number)
            signal.raise_signal(number)  # as `timeout` does
            time.sleep(0.3)
    if error is SystemExit:
        assert caught.value.code == 143
    words = [words for words, _ in said]
    assert words == ([] if note is None else ["Stopping", "Stopped"])


def test_a_repeated_signal_counts_as_the_second(said):
    """Thirty a second, as from a Ctrl-C that is held down."""
    with (
        pytest.raises(KeyboardInterrupt),
        signals.answered(lambda number: None, "Stopping", lambda: "Stopped"),
    ):
        for _ in range(30):
            signal.raise_signal(signal.SIGINT)
            time.sleep(1 / 30)
    assert [words for words, _ in said] == ["Stopping", "Stopped"]


def test_a_swallowed_exception_does_not_keep_a_process_alive(said, monkeypatch):
    """As in a finalizer, whose exceptions Python only prints."""
    ended = threading.Event()
    monkeypatch.setattr(signals, "_end", lambda *args, **kwargs: ended.set())
    monkeypatch.setattr(signals, "_PATIENCE", 0.1)
    with signals.answered(lambda number: None, "Stopping", lambda: "Stopped"):
        for _ in range(2):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            time.sleep(0.3)
        assert ended.wait(2)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_an_error_that_comes_of_the_signal_does_not_hide_it(
    said, number, error
):
    """As TensorFlow's do, if a signal ends Python code that it traces."""
    with pytest.raises(error), signals.answered():
        thread = send(number)
        try:
            time.sleep(5)
        finally:
            raise AssertionError("Nesting violated")
    thread.join()


def test_another_error_after_the_signal_is_itself(said):
    with pytest.raises(ValueError, match="another"), signals.answered():
        thread = send(signal.SIGINT)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(5)
        raise ValueError("another")
    thread.join()


def test_other_handlers_keep_their_signals(said):
    """Such as an event loop, which has its own wakeup socket."""
    here, there = socket.socketpair()
    there.setblocking(False)
    with here, there:
        before = signal.set_wakeup_fd(there.fileno())
        signal.signal(signal.SIGUSR1, lambda *args: None)
        try:
            with signals.answered(lambda number: None):
                signal.raise_signal(signal.SIGUSR1)
            assert here.recv(1) == bytes([signal.SIGUSR1])
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            assert signal.set_wakeup_fd(before) == there.fileno()


def test_an_ignored_signal_and_another_thread_are_left_alone(ctrl_c):
    ctrl_c(signal.SIG_IGN)
    with signals.answered():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    before = signal.getsignal(signal.SIGTERM)

    def enter():
        with signals.answered():
            assert signal.getsignal(signal.SIGTERM) == before

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()


STUCK = """
import hashlib
from moco_keras.system import signals
with signals.answered(last_words=lambda: "How to resume"):
    with signals.answered({note}, "Stopping", lambda: "Stopped at once"):
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "note"), [(signal.SIGINT, "None"), (signal.SIGTERM, "print")]
)
def test_the_second_signal_ends_a_process_in_a_long_call(number, note):
    with subprocess.Popen(
        [sys.executable, "-c", STUCK.format(note=note)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=programs.ROOT,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):
            time.sleep(1)
            process.send_signal(number)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    words = [line for line in stderr.splitlines() if line]
    assert words[-3:] == ["Stopping", "Stopped at once", "How to resume"]
