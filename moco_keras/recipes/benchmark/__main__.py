r"""Measures how fast everything is, each piece of work against its rivals.

    python -m moco_keras.recipes.benchmark
    python -m moco_keras.recipes.benchmark --only=step,augment_32 \
        --peer=lightly --peer_python=/elsewhere/bin/python

Each side of a comparison is a process of its own. They take turns; a line of
JSON gives a side's median, and a last line the ratios.

    python -m moco_keras.recipes.benchmark --only=time_to_knn --minutes=15 \
        --repeats=1 --peer=lightly --peer_python=/elsewhere/bin/python

trains on CIFAR-10 for so many minutes, with recipes/cifar10_hour.flags and with
lightly's own settings, and prints the kNN accuracies. It runs only if named.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from absl import app, flags

from moco_keras import arguments
from moco_keras.distribution import accelerators
from moco_keras.recipes import _cli
from moco_keras.recipes.benchmark import time_to_knn
from moco_keras.recipes.benchmark.benchmarks import (
    BENCHMARKS,
    COMMANDS,
    ENDS_ON_HOST,
    NOT_OF_PEER,
)
from moco_keras.recipes.benchmark.data_files import make_files
from moco_keras.recipes.benchmark.sides import OURS, Command, Side

FLAGS = flags.FLAGS
TIME_TO_KNN = "time_to_knn"
flags.DEFINE_list("only", list(BENCHMARKS), "benchmarks to run")
flags.DEFINE_float(
    "minutes", 15.0, f"of each side, in {TIME_TO_KNN}", lower_bound=1.0
)
flags.DEFINE_integer(
    "seed",
    0,
    f"of the first turn in {TIME_TO_KNN}; each further turn has the next",
)
flags.DEFINE_string(
    "runs_dir",
    None,
    f"folder that keeps the runs of our side in {TIME_TO_KNN}, in seed_0 and "
    "so on; by default runs are deleted",
)
flags.DEFINE_integer("repeats", 5, "turns of each side", lower_bound=1)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "of the arithmetic of our side; the peer's is float32. Unless it is given, "
    f"{TIME_TO_KNN} has the default of the programs that train",
)
flags.DEFINE_enum("peer", None, ["lightly"], "library to compare with")
flags.DEFINE_string(
    "peer_python", sys.executable, "interpreter that has the peer installed"
)
flags.DEFINE_integer(
    "peer_width",
    time_to_knn.OWN_WIDTH,
    f"of the peer's ResNet-18 in {TIME_TO_KNN}; its own by default. A narrower "
    "one sees more images in the same time",
    lower_bound=1,
)
flags.DEFINE_string(
    "data",
    "textures",
    f"data set of the training images; {TIME_TO_KNN} has CIFAR-10",
)
flags.DEFINE_string("data_dir", None, "see the programs that train")
flags.DEFINE_string("profile", None, "folder for a TensorBoard trace of a step")


def _common():
    cores = len(os.sched_getaffinity(0))
    return {"cores": cores, "precision": FLAGS.precision}


def _path(flag):
    return str(arguments.path(**{f"--{flag}": FLAGS[flag].value}))


def _sides(settings, with_peer):
    """The processes of a workload: ours, and the peer's where it has one."""
    if settings["work"] in COMMANDS:
        return [Command(settings)]
    sides = [Side("moco_keras", OURS, settings)]
    work = settings["work"]
    if accelerators.on_gpu():
        with_peer = with_peer and work in ENDS_ON_HOST
    if with_peer and work not in NOT_OF_PEER:
        float32 = {**settings, "precision": "float32"}
        sides.append(Side(FLAGS.peer, _of_peer("workloads"), float32))
    return sides


def _of_peer(what):
    """The command of the peer's script for something."""
    script = Path(__file__).with_name(f"{FLAGS.peer}_{what}.py")
    return [_path("peer_python"), str(script)]


def _measure(name, files):
    """Lets the sides of a benchmark take turns; prints a line for each."""
    sides = []
    try:
        for settings in BENCHMARKS[name]:
            settings = {**_common(), **files, **settings}
            # Beside several workloads of ours the peer would only take time.
            alone = len(BENCHMARKS[name]) == 1
            sides += _sides(settings, with_peer=FLAGS.peer and alone)
        for _ in range(FLAGS.repeats):
            for side in sides:
                side.take_turn()
    finally:
        for side in sides:
            side.close()
    medians = [_report(name, side) for side in sides]
    first = sides[0]
    for side, median in zip(sides[1:], medians[1:], strict=True):
        ratio = {
            "benchmark": name,
            "ratio_of_times": round(medians[0] / median, 3),
            "of": first.library,
            "to": side.library,
            "which_differ_by": {
                setting: [first.settings.get(setting), value]
                for setting, value in side.settings.items()
                if value != first.settings.get(setting)
            },
        }
        print(json.dumps(ratio), flush=True)


def _report(name, side):
    """Prints a side's figures; returns its median time, of an image if any."""
    median = statistics.median(side.seconds)
    images = side.about["images"]
    line = {
        "benchmark": name,
        "library": side.library,
        "work": side.settings["work"],
        "milliseconds": round(1000 * median, 2),
        "of_each_turn": [round(1000 * s, 2) for s in side.seconds],
        "images_per_second": round(images / median, 1) if images else None,
        "peak_memory_mib": side.peak_memory_mib,
        "device": accelerators.describe(),
        "versions": side.about["versions"],
        "settings": side.settings,
    }
    print(json.dumps(line), flush=True)
    return median / (images or 1)


def main(argv):
    """Measures what `--only` lists."""
    known = [*BENCHMARKS, TIME_TO_KNN]
    unknown = set(FLAGS.only) - set(known)
    if len(argv) > 1 or unknown:
        raise app.UsageError(
            f"--only must list some of {', '.join(known)}. Received: "
            f"{', '.join([*argv[1:], *sorted(unknown)])}."
        )
    if TIME_TO_KNN in FLAGS.only:
        if FLAGS.peer and accelerators.on_gpu():
            raise app.UsageError(
                f"--peer of {TIME_TO_KNN} trains on the processor. Received: "
                f"--peer={FLAGS.peer}, where there is a GPU. Leave it out, or "
                "set CUDA_VISIBLE_DEVICES=-1, so that both sides do."
            )
        FLAGS.only.remove(TIME_TO_KNN)
        time_to_knn.measure(
            FLAGS.minutes,
            range(FLAGS.seed, FLAGS.seed + FLAGS.repeats),
            FLAGS.peer and _of_peer("minutes"),
            FLAGS.peer_width,
            FLAGS.data_dir,
            FLAGS.runs_dir and _path("runs_dir"),
            FLAGS.precision if FLAGS["precision"].present else "auto",
        )
        if not FLAGS.only and not FLAGS.profile:
            return
    # Several processes share a GPU, this one among them.
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), FLAGS.data, FLAGS.data_dir)
        for name in FLAGS.only:
            _measure(name, files)
        if FLAGS.profile:
            step = {**BENCHMARKS["step"][0], "profile": _path("profile")}
            Side("moco_keras", OURS, {**_common(), **step}).close()


if __name__ == "__main__":
    app.run(main, flags_parser=_cli.parse_flags)
