"""Trains as the doctor advises, and compares its words with what happened.

    python tests/helpers/advised_run.py --images=FOLDER --out=FOLDER

Other flags are those of the doctor, except for those after --, which are for
the training run. It prints a line of JSON. Nothing else should run meanwhile.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(recipe, *flags):
    """Runs a program; returns its seconds, its output, and bytes of memory."""
    start = time.monotonic()
    command = [sys.executable, "-m", f"moco_keras.recipes.{recipe}", *flags]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(1)
        seconds = time.monotonic() - start
        output.seek(0)
        return seconds, output.read().decode(), 1024 * usage.ru_maxrss


def step_seconds(output, steps):
    """Seconds of a step in each epoch, as Keras's progress bar ends with."""
    end = rf"(?<!\d){steps}/{steps}(?!\d).*?(\d+)(ms|s)/step"
    ends = re.findall(end, output)
    return [int(n) / (1000 if unit == "ms" else 1) for n, unit in ends]


def main(arguments):
    """Runs both programs, and prints the comparison."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    (out,) = (a[6:] for a in arguments[:split] if a.startswith("--out="))
    looked, *_ = run("doctor", *arguments[:split])
    said = json.loads(Path(out, "doctor.json").read_text())
    trained, output, memory = run(
        "image_folder",
        f"--flagfile={out}/doctor.flags",
        f"--run_dir={out}/run",
        *arguments[split + 1 :],
    )
    metrics = json.loads(Path(out, "run/metrics.json").read_text())
    cost = said["cost"]
    steps = cost["steps_of_an_epoch"]
    found = statistics.median(step_seconds(output, steps)) * steps
    print(
        json.dumps(
            {
                "seconds_of_the_doctor": looked,
                "seconds_of_the_run": trained,
                "advice": said["advice"],
                **{k: metrics[k] for k in metrics if k.startswith("knn")},
                "seconds_of_an_epoch": [cost["seconds_of_an_epoch"], found],
                "bytes_of_memory": [cost["bytes_of_memory"], memory],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
