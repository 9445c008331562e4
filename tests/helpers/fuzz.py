"""Calls an exported encoder with damaged image files.

    python tests/helpers/fuzz.py FOLDER [COUNT]

Every answer must be an embedding or an InvalidArgument error, and a good file
must still be embedded as before. Prints a line of JSON.
"""

import collections
import json
import resource
import sys

import numpy as np
import tensorflow as tf


def good_files(rng):
    """A JPEG, a PNG, a GIF and a BMP file."""
    image = rng.integers(0, 256, (40, 50, 3), "uint8")
    image[10:30] //= 8  # a part that compresses well
    header = b"BM" + (54 + image.size).to_bytes(4, "little") + bytes(4)
    sizes = (54, 40, 50, 40)
    header += b"".join(n.to_bytes(4, "little") for n in sizes)
    header += (1 + (24 << 16)).to_bytes(4, "little") + bytes(24)
    rows = np.pad(image.reshape(40, -1), ((0, 0), (0, 2)))
    gif = (
        b"GIF89a" + (2).to_bytes(2, "little") * 2 + b"\x80\0\0\0\0\0\xff\xff"
        b"\xff,\0\0\0\0" + (2).to_bytes(2, "little") * 2 + b"\0\x02\x03"
        b"\x44\x02\x05\0;"
    )
    return {
        "jpeg": tf.io.encode_jpeg(image).numpy(),
        "png": tf.io.encode_png(image).numpy(),
        "bmp": header + rows.tobytes(),
        "gif": gif,
    }


def flip(data, kind, rng):
    data = bytearray(data)
    for bit in rng.integers(0, 8 * len(data), rng.integers(1, 20)):
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def truncate(data, kind, rng):
    return data[: rng.integers(0, len(data))]


def overwrite(data, kind, rng):
    start, length = rng.integers(0, len(data)), rng.integers(1, 200)
    return data[:start] + rng.bytes(length) + data[start + length :]


def declare(data, kind, rng):
    """Replaces the size in the header by another, up to the largest."""
    start, size = {
        "jpeg": (data.find(b"\xff\xc0") + 5, 2),
        "png": (16, 4),
        "bmp": (18, 4),
        "gif": (6, 2),
    }[kind]
    sizes = b"".join(
        int(min(2 ** rng.uniform(0, 33), 256**size - 1)).to_bytes(size, "big")
        for _ in range(2)
    )
    return data[:start] + sizes + data[start + 2 * size :]


def main(folder, count=2000):
    rng = np.random.default_rng(0)
    files = good_files(rng)
    serve = tf.saved_model.load(folder).signatures["serve_encoded"]

    def embed(data):
        return serve(image_bytes=tf.constant([data]))["embedding"].numpy()

    expected = {kind: embed(data) for kind, data in files.items()}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    noise = rng.bytes(50_000_000)
    cases = [b"", noise, *(data[:24] + noise for data in files.values())]
    kinds, damages = list(files), [flip, truncate, overwrite, declare]
    for i in range(count):
        kind = kinds[i % 4]
        cases.append(damages[i // 4 % 4](files[kind], kind, rng))
    answers = collections.Counter()
    for i, data in enumerate(cases):
        try:
            embedding = embed(data)
            assert embedding.shape == expected["png"].shape
            assert np.isfinite(embedding).all()
            answers["embeddings"] += 1
        except tf.errors.InvalidArgumentError:
            answers["refusals"] += 1
        if i % 100 == 0:
            for kind, good in files.items():
                np.testing.assert_array_equal(embed(good), expected[kind])
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes
    print(json.dumps({**answers, "more_memory_mib": more // 1024}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
