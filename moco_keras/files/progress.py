"""How far a scan of many files is."""

import sys
import time

_PATIENCE = 2  # seconds without a word
_EVERY = 0.5  # seconds, on a terminal
_EVERY_LINE = 30  # seconds, elsewhere


class Progress:
    """Prints how many files were looked at, and the time that is left.

    Args:
        total: number of the files.

    Attributes:
        shown: whether it was printed, because it took more than two seconds.
    """

    def __init__(self, total):
        self._total = total
        self._start = time.monotonic()
        self._due = self._start + _PATIENCE
        self.shown = False

    def show(self, done):
        """Prints it, if it is time to.

        Args:
            done: number of the files that were looked at.
        """
        now = time.monotonic()
        on_terminal = sys.stdout.isatty()
        last = done == self._total
        if now < self._due and not (last and self.shown):
            return
        self.shown = True
        line = f"Looked at {done:,} of {self._total:,} files"
        if not last:
            left = (now - self._start) / done * (self._total - done)
            line += f", about {duration(left)} left"
        if on_terminal:  # one over the other
            print(f"\r{line:<70}", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)
        self._due = now + (_EVERY if on_terminal else _EVERY_LINE)


def duration(seconds):
    """A time in words, with two digits at most."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} seconds"
