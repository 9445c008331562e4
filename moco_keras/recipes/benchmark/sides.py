"""Sides of a comparison: processes that take turns at a piece of work."""

import json
import os
import platform
import subprocess
import sys
import time

from moco_keras.recipes.benchmark.benchmarks import COMMANDS

OURS = [sys.executable, "-m", "moco_keras.recipes.benchmark.workloads"]


class Side:
    """A process that does one side's workload when asked."""

    def __init__(self, library, command, settings):
        self.library, self.settings, self.seconds = library, settings, []
        # The process has them from its start, before anything counts them.
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(cores)[: settings["cores"]])
        self._process = subprocess.Popen(
            [*command, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        os.sched_setaffinity(0, cores)
        self.about = self._receive()

    def take_turn(self):
        time.sleep(1)  # the other side's threads may still be spinning
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        received = self._receive()
        self.seconds.append(received["seconds"])
        self.peak_memory_mib = received["peak_memory_mib"]

    def close(self):
        self._process.communicate()

    def _receive(self):
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.close()
        raise ChildProcessError(
            f"The process of {self.library} ended with exit code "
            f"{self._process.returncode}; what it said stands above."
        )


class Command:
    """A process that is started anew for every turn."""

    peak_memory_mib = None

    def __init__(self, settings):
        self.library, self.settings, self.seconds = "python", settings, []
        versions = {"python": platform.python_version()}
        self.about = {"images": 0, "versions": versions}
        self.take_turn()  # fills the disk's cache
        self.seconds.clear()

    def take_turn(self):
        arguments = COMMANDS[self.settings["work"]]
        start = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True
        )
        self.seconds.append(time.perf_counter() - start)
        if ended.returncode:
            raise ChildProcessError(ended.stderr)

    def close(self):
        pass
