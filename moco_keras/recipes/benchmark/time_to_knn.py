"""The kNN accuracy that each library reaches in the same minutes."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from moco_keras import data
from moco_keras.evaluation import features, knn

FLAG_FILE = Path(__file__).parents[3] / "recipes" / "cifar10_hour.flags"
OWN_WIDTH = 64  # of the ResNet-18 in lightly's benchmark


def measure(
    minutes,
    seeds,
    peer_command,
    peer_width,
    data_dir,
    runs_dir=None,
    precision="auto",
):
    """Lets both sides train in turn; prints a line of JSON for each training.

    The peer begins: should it not be installed, no training of ours is lost.
    Our side is the program, with its start, its trial steps and its pictures.
    Of the peer the training steps alone count, in its default, float32.

    Args:
        minutes: that each may take.
        seeds: of the turns of each side.
        peer_command: that runs the peer's script, a list; None for our side
            alone.
        peer_width: of the first stage of the peer's ResNet-18.
        data_dir: where TFDS keeps its data.
        runs_dir: folder that keeps the runs of our side, in `seed_0` and so
            on; None to delete them.
        precision: of our side; "auto" is bfloat16 where the processor has
            units for it.

    Raises:
        FileNotFoundError: if this is not a clone of the library.
        FileExistsError: if a run of our side is there already.
    """
    if not FLAG_FILE.is_file():
        raise FileNotFoundError(
            "Our side trains with recipes/cifar10_hour.flags, which a clone of "
            f"this library has. Received: no file {FLAG_FILE}. Run the "
            "benchmark in a clone."
        )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        runs = {s: Path(runs_dir or folder) / f"seed_{s}" for s in seeds}
        for seed, run in runs.items():
            if run.exists():
                raise FileExistsError(
                    "--runs_dir must be a folder without runs of these seeds: "
                    "one that is resumed would not show how long it took. "
                    f"Received: {run}, which exists. Delete it, begin with "
                    f"--seed={seed + 1}, or choose another folder."
                )
        sides = {}
        if peer_command:
            train, test = (
                data.load("cifar10", split, data_dir=data_dir)
                for split in ("train", "test")
            )
            file = folder / "images.npz"
            np.savez(file, train=train.images, test=test.images)
            labels = train.labels, test.labels
            sides["lightly"] = lambda seed: _theirs(
                peer_command, peer_width, labels, folder, seed, minutes
            )
        sides["moco_keras"] = lambda seed: _ours(
            seed, minutes, precision, data_dir, runs[seed]
        )
        found = {name: [] for name in sides}
        for seed in seeds:
            for name, side in sides.items():
                line = {
                    "benchmark": "time_to_knn",
                    "library": name,
                    "seed": seed,
                }
                line |= side(seed)
                found[name].append(line["knn"])
                print(json.dumps(line), flush=True)
    medians = {name: statistics.median(knns) for name, knns in found.items()}
    print(json.dumps({"benchmark": "time_to_knn", "median_knn": medians}))


def _ours(seed, minutes, precision, data_dir, run_dir):
    command = [
        *(sys.executable, "-m", "moco_keras.recipes.cifar10"),
        f"--flagfile={FLAG_FILE}",
        f"--minutes={minutes}",
        f"--seed={seed}",
        f"--precision={precision}",
        f"--run_dir={run_dir}",
    ]
    if data_dir:
        command.append(f"--data_dir={data_dir}")
    subprocess.run(command, check=True, stdout=sys.stderr)
    metrics, timing, record = (
        json.loads((run_dir / f"{name}.json").read_text())
        for name in ("metrics", "timing", "settings")
    )
    settings, images = record["settings"], record["data"]["train_images"]
    steps = settings["epochs"] * settings["steps_per_epoch"]
    return {
        "knn": metrics["knn_trained"],
        "minutes_of_fit": timing["seconds"] / 60,
        "images_per_second": timing["images_per_second"],
        "passes": steps * settings["batch_size"] / images,
        "device": record["device"],
        "versions": record["versions"],
        "settings": settings,
    }


def _theirs(command, width, labels, folder, seed, minutes):
    settings = {
        "data": str(folder / "images.npz"),
        "features": str(folder / "features.npz"),
        "minutes": minutes,
        "seed": seed,
        "width": width,
        "loader_processes": len(os.sched_getaffinity(0)),
    }
    ended = subprocess.run(
        [*command, json.dumps(settings)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = np.load(settings["features"])
    bank, queries = (features.unit_rows(found[n]) for n in ("train", "test"))
    return {
        "knn": knn.accuracy(bank, labels[0], queries, labels[1]),
        **json.loads(ended.stdout.splitlines()[-1]),
        "settings": settings,
    }
