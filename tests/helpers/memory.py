"""Compares the memory that training runs take with the estimates of programs.

    python tests/helpers/memory.py

Each line is a run of `image_folder` on photographs for an epoch. Its memory is
that of all but the model: training, evaluation, export and pictures.
"""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import re
import tempfile
from pathlib import Path

import tensorflow as tf

from moco_keras.recipes import _model, _pretrain, _threads, image_folder
from moco_keras.recipes._memory import Memory
from moco_keras.recipes.benchmark.data_files import draw_photograph

POINTS = [
    {"backbone": backbone, "image_size": size, "batch_size": batch, **more}
    for backbone, size, batch, more in [
        ("resnet18", 32, 256, {}),
        ("resnet18", 64, 64, {}),
        ("resnet18", 96, 64, {}),
        ("resnet18", 96, 128, {"width": 32}),
        ("resnet18", 96, 64, {"symmetric": True}),
        ("resnet18", 128, 128, {}),
        ("resnet18", 224, 16, {}),
        ("resnet18", 224, 64, {}),
        ("resnet50", 96, 64, {}),
        ("resnet50", 128, 64, {}),
        ("resnet50", 224, 16, {}),
        ("resnet50", 224, 64, {}),
        ("resnet50", 96, 64, {"precision": "mixed_bfloat16"}),
        ("resnet18", 96, 64, {"queue_size": 65536}),
    ]
]


def measure(point, photographs):
    """Trains in this process; returns the MiB estimated and taken."""
    _threads.share_cores()
    seen = {}
    build, memory = _model.build_replicated, Memory.needed

    def built(*args):
        model = build(*args)
        seen["before"] = _mib("VmRSS")
        return model

    def needed(self, images):
        seen["estimate"] = memory(self, images) / 2**20
        return memory(self, images)

    _model.build_replicated, Memory.needed = built, needed
    settings = dataclasses.replace(
        image_folder.DEFAULTS,
        images=photographs,
        train_examples=max(3 * point["batch_size"], 320),
        test_examples=64,  # and a bank of 256
        epochs=1,
        **{"width": 64, "queue_size": 4096, **point},
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        settings = dataclasses.replace(settings, run_dir=f"{folder}/run")
        _pretrain.pretrain(settings, "image_folder", image_folder.read)
    return seen["estimate"], _mib("VmHWM") - seen["before"]


def _mib(name):
    status = Path("/proc/self/status").read_text()
    (kib,) = re.findall(rf"^{name}:\s*(\d+) kB", status, re.M)
    return int(kib) / 1024


def draw(folder):
    """Writes 800 photographs, which are copies of 16."""
    files = []
    for number in range(16):
        jpeg = tf.io.encode_jpeg(draw_photograph(number), quality=90)
        files.append(jpeg.numpy())
    for number in range(800):
        place = Path(folder, "ab"[number % 2], f"{number}.jpg")
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(files[number % 16])


def main():
    """Prints a line of JSON for each point, each from its own process."""
    spawned = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        draw(folder)
        for point in POINTS:
            with spawned.Pool(1) as pool:
                estimate, taken = pool.apply(measure, (point, folder))
            line = {
                **point,
                "estimate_mib": round(estimate),
                "taken_mib": round(taken),
                "ratio": round(estimate / taken, 2),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
