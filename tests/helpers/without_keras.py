"""Calls exported models in a process without Keras and moco_keras."""

import subprocess
import sys
from pathlib import Path

import numpy as np

SIGNATURES = {"images": "serving_default", "image_bytes": "serve_encoded"}
BATCHES = (1, 7, 64)


def embed(given, folders, output="embedding"):
    """What both signatures of exports return, with two loaders.

    Args:
        given: path of a .npz file of `images`, `image_bytes`, or both.
        folders: of the exports.
        output: its name.

    Returns:
        {"<folder> <input> <batch or v1>": output}.
    """
    found = Path(given).with_name("found.npz")
    subprocess.run(
        [sys.executable, __file__, given, found, output, *folders],
        check=True,
    )
    return dict(np.load(found))


def main(given, found, output, *folders):
    """Loads each export with the loaders of TensorFlow 2 and 1."""
    # TensorFlow's loader looks for Keras, so it is hidden, not just left out.
    sys.modules["keras"] = sys.modules["moco_keras"] = None
    import tensorflow as tf

    given = dict(np.load(given))
    signatures = {k: SIGNATURES[k] for k in given}
    results = {}
    for folder in folders:
        loaded = tf.saved_model.load(folder)
        for key, name in signatures.items():
            signature = loaded.signatures[name]
            values = tf.constant(given[key])
            for n in BATCHES:
                value = signature(**{key: values[:n]})[output].numpy()
                results[f"{folder} {key} {n}"] = value
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
            for key, name in signatures.items():
                signature = meta.signature_def[name]
                results[f"{folder} {key} v1"] = session.run(
                    signature.outputs[output].name,
                    {signature.inputs[key].name: given[key]},
                )
    texts = {k: v.astype("bytes") for k, v in results.items() if v.dtype == "O"}
    np.savez(found, **{**results, **texts})


if __name__ == "__main__":
    main(*sys.argv[1:])
