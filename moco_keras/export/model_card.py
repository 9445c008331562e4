"""The record of an export, such as encoder.json, and its model card."""

import datetime
import hashlib
import json
import platform
import re
import subprocess
from importlib import metadata

from moco_keras import keras_private
from moco_keras.system.paths import printable
from moco_keras.version import __version__

_PACKAGES = ("keras", "tensorflow", "numpy")
_WEIGHTS = f"variables/variables{keras_private.CHECKPOINT_DATA}"


def write(exported, folder, name, *, signatures, file, training):
    """Writes the record and README.md into the folder of a SavedModel.

    Args:
        exported: an `Exported`.
        folder: a `Path`, in which the SavedModel is.
        name: of the model.
        signatures: {name: (inputs, outputs)}, both `tf.TensorSpec`s by name.
        file: name of the file for another runtime, or None.
        training: the user's record of the training run; JSON values by name.
    """
    height, width, _ = exported.image_shape
    record = {
        "name": name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(
            timespec="seconds"
        ),
        "image_size": height if height == width else [height, width],
        "value_range": list(exported.pixels.bounds),
        **exported.facts(),
        "signatures": {
            signature: {"inputs": _table(inputs), "outputs": _table(outputs)}
            for signature, (inputs, outputs) in signatures.items()
        },
        "other_runtime": file,
        "weights": {"file": _WEIGHTS, "sha256": _sha256(folder / _WEIGHTS)},
        "versions": versions(_PACKAGES),
        "git_revision": _git_revision(),
        "training": training,
    }
    for file, text in {
        f"{exported.kind}.json": json.dumps(record, indent=2) + "\n",
        "README.md": _model_card(exported, record),
    }.items():
        (folder / file).write_text(text, "utf-8", errors="backslashreplace")


def versions(packages):
    """Versions of this library, of Python, and of installed packages."""
    return {
        "moco_keras": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


def _table(specs):
    return {
        name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
        for name, spec in specs.items()
    }


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git_revision():
    """The git revision of the working directory, or None.

    It ends in "-dirty" if files differ from it.
    """
    command = "git describe --always --dirty --abbrev=40 --exclude=*"
    try:
        said = subprocess.run(
            command.split(), capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None


def _model_card(exported, record):
    name = re.sub(r"([\\`*_\[\]<>&$~#|])", r"\\\1", printable(record["name"]))
    what, returns = exported.introduction()
    outputs = record["signatures"]["serving_default"]["outputs"]
    columns = ["signature", "input", *outputs]
    lines = [
        f"# {name}",
        "",
        f"{what} learned without labels, by Momentum Contrast "
        "([He et al., 2020](https://arxiv.org/abs/1911.05722)) in moco_keras "
        f"{record['versions']['moco_keras']}. {returns}",
        "",
        "## Signatures",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for name, table in record["signatures"].items():
        cells = [
            f"`{key}`, {value['dtype']} {_shape(value['shape'])}"
            for part in ("inputs", "outputs")
            for key, value in table[part].items()
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    kind, result = exported.kind, exported.result
    height, width, channels = exported.image_shape
    low, high = exported.pixels.bounds
    about = (
        f"`images` have pixels from {low:g} to {high:g}, {height} by {width} "
        f"of them, with {channels} channel{'s' * (channels > 1)}."
    )
    signature, given = "serving_default", "images=IMAGES"
    if exported.decodes_files:
        signature, given = "serve_encoded", "image_bytes=tf.constant([JPEG])"
        about += (
            " `image_bytes` are JPEG or PNG files of any size, whose "
            "center is resized."
        )
    lines += [
        "",
        about,
        "",
        "    import tensorflow as tf",
        "",
        f"    {kind} = tf.saved_model.load(FOLDER)",
        f'    serve = {kind}.signatures["{signature}"]',
        f'    serve({given})["{result}"]',
        "",
        f"`{kind}.keras` is the same {kind} for fine-tuning with Keras, in the "
        "precision of its training. The SavedModel computes in float32.",
        *_other_runtime(record["other_runtime"], result),
        "",
        *exported.section(),
        "## Training",
        "",
    ]
    if record["training"]:
        text = json.dumps(record["training"], indent=2, ensure_ascii=False)
        lines += ["    " + line for line in text.splitlines()]
    else:
        lines.append("Nothing was recorded.")
    lines += [
        "",
        f"Exported {record['created']}, git revision "
        f"{record['git_revision'] or 'unknown'}. SHA-256 of "
        f"`{record['weights']['file']}`: `{record['weights']['sha256']}`.",
    ]
    return "\n".join(lines) + "\n"


def _other_runtime(file, result):
    runtimes = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}
    if file is None:
        return []
    return [
        f"`{file}` is the same for {runtimes[file.partition('.')[2]]}, from "
        f"`images` to `{result}`, in float32.",
    ]


def _shape(shape):
    return f"({', '.join('N' if n is None else str(n) for n in shape)})"
