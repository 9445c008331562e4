"""Files that the benchmark's workloads read."""

import json
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from moco_keras import data


def make_files(folder, name, data_dir):
    """What the workloads read: photographs to decode and images to train on."""
    photographs = folder / "photographs"
    photographs.mkdir()
    for number in range(64):
        jpeg = tf.io.encode_jpeg(draw_photograph(number), quality=90)
        (photographs / f"{number:02}.jpg").write_bytes(jpeg.numpy())
    stream = data.read_named(name, data_dir=data_dir)
    images = stream.load().images[:10_000]
    np.save(folder / "images.npy", images)
    link_again(name, data_dir, folder / "large", images=1_000_000)
    return {
        "jpegs": str(photographs),
        "images": str(folder / "images.npy"),
        "data": name,
        "large_data_dir": str(folder / "large"),
        "loader_processes": len(os.sched_getaffinity(0)),
    }


def draw_photograph(seed):
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


def link_again(name, data_dir, folder, images):
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
