"""Calls exported models in a process without Keras and moco_keras."""

import subprocess
import sys
from pathlib import Path

import numpy as np

SIGNATURES = {"images": "serving_default", "image_bytes": "serve_encoded"}
BATCHES = (1, 7, 64)


def embed(given, folders):
    """The embeddings of `outputs`."""
    return outputs(given, folders, ["embedding"])["embedding"]


def outputs(given, folders, names):
    """What both signatures of exports return, with two loaders.

    Args:
        given: path of a .npz file of `images`, `image_bytes`, or both.
        folders: of the exports.
        names: of the outputs.

    Returns:
        {name: {"<folder> <input> <batch or v1>": output}}.
    """
    found = Path(given).with_name("found.npz")
    subprocess.run(
        [sys.executable, __file__, given, found, ",".join(names), *folders],
        check=True,
    )
    results = {name: {} for name in names}
    for key, value in np.load(found).items():
        name, _, rest = key.partition(" ")
        results[name][rest] = value
    return results


def main(given, found, names, *folders):
    """Loads each export with the loaders of TensorFlow 2 and 1."""
    # TensorFlow's loader looks for Keras, so it is hidden, not just left out.
    sys.modules["keras"] = sys.modules["moco_keras"] = None
    import tensorflow as tf

    given = dict(np.load(given))
    names = names.split(",")
    signatures = {k: SIGNATURES[k] for k in given}
    results = {}
    for folder in folders:
        loaded = tf.saved_model.load(folder)
        for key, name in signatures.items():
            signature = loaded.signatures[name]
            values = tf.constant(given[key])
            for n in BATCHES:
                returned = signature(**{key: values[:n]})
                for each in names:
                    value = returned[each].numpy()
                    results[f"{each} {folder} {key} {n}"] = value
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
            for key, name in signatures.items():
                signature = meta.signature_def[name]
                returned = session.run(
                    {each: signature.outputs[each].name for each in names},
                    {signature.inputs[key].name: given[key]},
                )
                for each, value in returned.items():
                    results[f"{each} {folder} {key} v1"] = value
    texts = {k: v.astype("bytes") for k, v in results.items() if v.dtype == "O"}
    np.savez(found, **{**results, **texts})


if __name__ == "__main__":
    main(*sys.argv[1:])
