r"""Measures how fast everything is, each piece of work against its rivals.

    python -m moco_keras.recipes.benchmark
    python -m moco_keras.recipes.benchmark --only=step,augment_32 \
        --peer=lightly --peer_python=/elsewhere/bin/python

Each side of a comparison is a process of its own. They take turns; a line of
JSON gives a side's median, and a last line the ratios.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import app, flags

from moco_keras import arguments, data
from moco_keras.distribution import accelerators
from moco_keras.recipes import _cli

_FULL = {"width": 64, "batch_size": 64, "queue_size": 4096, "bn_splits": 1}
_NARROW = {"width": 16, "batch_size": 256, "queue_size": 4096, "bn_splits": 8}
_SERVED = {"encoder": "resnet50", "batch_size": 32}

# By name, the sides: the work and its settings. The first is compared with the
# others; one alone with the peer's, where that does the same work.
_BENCHMARKS = {
    "step": [{"work": "step", "steps": 4, **_FULL}],
    "step_split": [{"work": "step", "steps": 8, **_NARROW}],
    "limit": [
        {"work": "step", "steps": 4, **_FULL},
        {"work": "supervised", "steps": 4, **_FULL},
    ],
    "limit_split": [
        {"work": "step", "steps": 8, **_NARROW},
        {"work": "supervised", "steps": 8, **_NARROW},
    ],
    "long_queue": [
        {"work": "step", "steps": 4, **_FULL, "queue_size": 65536},
        {"work": "step", "steps": 4, **_FULL},
    ],
    # The same step by two devices, by one, and by two that exchange no images.
    "replicas": [
        {"work": "replicas", "steps": 8, **_NARROW, "replicas": 2},
        {"work": "replicas", "steps": 8, **_NARROW, "replicas": 1},
        {
            "work": "replicas",
            "steps": 8,
            **_NARROW,
            "replicas": 2,
            "shuffle": "split",
        },
    ],
    # Saved forty times as often as once a minute, and not at all.
    "checkpoint": [
        {"work": "saved", "steps": 8, **_FULL, "queue_size": 65536, "every": n}
        for n in ("1 step", None)
    ],
    "augment_32": [{"work": "augment_32", "batch_size": 1024, "cores": 1}],
    "augment_224": [
        {"work": "augment_224", "batch_size": 32, "epochs": 32, "cores": 1}
    ],
    "input_pipeline": [{"work": "input_pipeline", **_NARROW}],
    "end_to_end": [{"work": "end_to_end", **_NARROW, "num_images": 10_000}],
    "more_images": [
        {"work": "end_to_end", **_NARROW, "num_images": n}
        for n in (10_000, 50_000, 1_000_000)
    ],
    "more_files": [
        {"work": "read_files", "batch_size": 256, "num_images": n, "epochs": e}
        for n, e in ((10_000, 20), (50_000, 4), (1_000_000, 1))
    ],
    "momentum_update": [{"work": "momentum_update", "steps": 100, **_FULL}],
    "queue": [
        {"work": "queue", "steps": 20, "batch_size": 256, "queue_size": 65536}
    ],
    "knn": [{"work": "knn", "bank": 50_000, "queries": 2_000}],
    # An export, and its parts without it.
    "serve_encoded": [
        {"work": work, **_SERVED}
        for work in ("serve_encoded", "decode_and_encode")
    ],
    "serve_images": [
        {"work": work, **_SERVED} for work in ("serve_images", "encode_images")
    ],
    "load_export": [{"work": "load_export", **_SERVED}],
    "import": [
        {"work": "import moco_keras"},
        {"work": "import keras"},
        {"work": "cifar10 --help"},
    ],
}
# Whole processes, by what the interpreter is given.
_COMMANDS = {
    "import moco_keras": ["-c", "import moco_keras"],
    "import keras": ["-c", "import keras"],
    "cifar10 --help": ["-m", "moco_keras.recipes.cifar10", "--help"],
}
_NOT_OF_PEER = {
    "supervised",
    "read_files",
    "replicas",
    "saved",
    "load_export",
    *_COMMANDS,
}
# On a GPU the peer does only what ends with a number on the host: nothing else
# waits for the GPU.
_AWAITED = {"step", "end_to_end"}
_OURS = [sys.executable, "-m", "moco_keras.recipes.benchmark.workloads"]

FLAGS = flags.FLAGS
flags.DEFINE_list("only", list(_BENCHMARKS), "benchmarks to run")
flags.DEFINE_integer("repeats", 5, "turns of each side", lower_bound=1)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "of the arithmetic of our side; the peer's is float32",
)
flags.DEFINE_enum("peer", None, ["lightly"], "library to compare with")
flags.DEFINE_string(
    "peer_python", sys.executable, "interpreter that has the peer installed"
)
flags.DEFINE_string("data", "textures", "data set of the training images")
flags.DEFINE_string("data_dir", None, "see the programs that train")
flags.DEFINE_string("profile", None, "folder for a TensorBoard trace of a step")


class _Side:
    """A process that does one side's work when asked."""

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
        self.about = self._hear()

    def take_turn(self):
        time.sleep(1)  # the other side's threads may still be spinning
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        heard = self._hear()
        self.seconds.append(heard["seconds"])
        self.peak_memory_mib = heard["peak_memory_mib"]

    def close(self):
        self._process.communicate()

    def _hear(self):
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.close()
        raise ChildProcessError(
            f"The process of {self.library} ended with exit code "
            f"{self._process.returncode}; what it said stands above."
        )


class _Command:
    """A process that is started anew for every turn."""

    peak_memory_mib = None

    def __init__(self, settings):
        self.library, self.settings, self.seconds = "python", settings, []
        versions = {"python": platform.python_version()}
        self.about = {"images": 0, "versions": versions}
        self.take_turn()  # fills the disk's cache
        self.seconds.clear()

    def take_turn(self):
        arguments = _COMMANDS[self.settings["work"]]
        start = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True
        )
        self.seconds.append(time.perf_counter() - start)
        if ended.returncode:
            raise ChildProcessError(ended.stderr)

    def close(self):
        pass


def _common():
    cores = len(os.sched_getaffinity(0))
    return {"cores": cores, "precision": FLAGS.precision}


def _path(flag):
    return str(arguments.path(**{f"--{flag}": FLAGS[flag].value}))


def _sides(settings, with_peer):
    """The processes that do a work: ours, and the peer's where it does it."""
    if settings["work"] in _COMMANDS:
        return [_Command(settings)]
    sides = [_Side("moco_keras", _OURS, settings)]
    work = settings["work"]
    if accelerators.on_gpu():
        with_peer = with_peer and work in _AWAITED
    if with_peer and work not in _NOT_OF_PEER:
        script = Path(__file__).with_name(f"{FLAGS.peer}_workloads.py")
        theirs = [_path("peer_python"), str(script)]
        float32 = {**settings, "precision": "float32"}
        sides.append(_Side(FLAGS.peer, theirs, float32))
    return sides


def _measure(name, files):
    """Lets the sides of a benchmark take turns; prints a line for each."""
    sides = []
    try:
        for settings in _BENCHMARKS[name]:
            settings = {**_common(), **files, **settings}
            # Beside several works of ours the peer would only take time.
            alone = len(_BENCHMARKS[name]) == 1
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


def _make_files(folder):
    """What the works read: photographs to decode and images to train on."""
    photographs = folder / "photographs"
    photographs.mkdir()
    for number in range(64):
        jpeg = tf.io.encode_jpeg(_draw_photograph(number), quality=90)
        (photographs / f"{number:02}.jpg").write_bytes(jpeg.numpy())
    stream = data.read_named(FLAGS.data, data_dir=FLAGS.data_dir)
    images = stream.load().images[:10_000]
    np.save(folder / "images.npy", images)
    _link_again(FLAGS.data, FLAGS.data_dir, folder / "large", images=1_000_000)
    return {
        "jpegs": str(photographs),
        "images": str(folder / "images.npy"),
        "data": FLAGS.data,
        "large_data_dir": str(folder / "large"),
        "loader_processes": len(os.sched_getaffinity(0)),
    }


def _draw_photograph(seed):
    """Noise, uint8 (375, 500, 3), whose JPEG is as long as a photograph's."""
    rng = np.random.default_rng(seed)

    def detail(channels):
        # Of every size, the finer the fainter.
        return sum(
            tf.image.resize(
                rng.normal(size=(side, side, channels)) / side**0.5,
                (375, 500),
                "bicubic",
            )
            for side in (4, 8, 16, 32, 64, 128, 256)
        )

    picture = detail(channels=1) + 0.3 * detail(channels=3)
    picture = 127.5 + 55 * picture / tf.math.reduce_std(picture)
    return tf.cast(tf.clip_by_value(picture, 0, 255), "uint8")


def _link_again(name, data_dir, folder, images):
    """Makes a large data set of a small one by linking its files many times."""
    source = Path(data.find_builder(name, data_dir).data_path)
    info = json.loads((source / "dataset_info.json").read_text())
    (train,) = (split for split in info["splits"] if split["name"] == "train")
    shards = train["shardLengths"]
    times = -(-images // sum(map(int, shards)))
    copy = folder.joinpath(*source.parts[-2:])
    copy.mkdir(parents=True)
    for file in source.iterdir():
        if "-train." not in file.name:
            (copy / file.name).symlink_to(file.resolve())
    files = sorted(source.glob("*-train.*"))
    for number, file in enumerate(times * files):
        stem = file.name.rsplit("-", 3)[0]
        shard = f"{stem}-{number:05}-of-{times * len(files):05}"
        (copy / shard).symlink_to(file.resolve())
    train["shardLengths"] = times * shards
    train["numBytes"] = str(times * int(train["numBytes"]))
    (copy / "dataset_info.json").unlink()
    (copy / "dataset_info.json").write_text(json.dumps(info))


def main(argv):
    """Measures what `--only` lists."""
    unknown = set(FLAGS.only) - set(_BENCHMARKS)
    if len(argv) > 1 or unknown:
        raise app.UsageError(
            f"--only must list some of {', '.join(_BENCHMARKS)}. Received: "
            f"{', '.join([*argv[1:], *sorted(unknown)])}."
        )
    # Several processes share a GPU, this one among them.
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        files = _make_files(Path(folder))
        for name in FLAGS.only:
            _measure(name, files)
        if FLAGS.profile:
            step = {**_BENCHMARKS["step"][0], "profile": _path("profile")}
            _Side("moco_keras", _OURS, {**_common(), **step}).close()


if __name__ == "__main__":
    app.run(main, flags_parser=_cli.parse_flags)
