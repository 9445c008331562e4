"""One side of a benchmark: a process that times a workload whenever asked.

Nothing of the library is imported here, because other libraries run it too.
"""

import json
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path


def time_on_request(works, packages, profile=None):
    """Prepares the workload of the command line; times it for each line read.

    Args:
        works: functions from settings to (run, images): a function without
            arguments, and the number of images it treats.
        packages: whose versions are reported.
        profile: function from a folder to a context that traces into it, for
            the setting of that name.
    """
    settings = json.loads(sys.argv[1])
    by_name = {work.__name__: work for work in works}
    run, images = by_name[settings["work"]](settings)
    for _ in range(2):  # tracing, allocating, first use
        run()
    if "profile" in settings:
        with profile(settings["profile"]):
            run()
    versions = {name: metadata.version(name) for name in packages}
    versions["python"] = platform.python_version()
    _send({"images": images, "versions": versions})
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        _send({"seconds": seconds, "peak_memory_mib": _peak_memory_mib()})


def _peak_memory_mib():
    # `resource.getrusage` would tell the parent's peak where that is higher.
    status = Path("/proc/self/status").read_text()
    (kib,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    return round(int(kib) / 1024)


def _send(message):
    print(json.dumps(message), flush=True)
