r"""Names the images of a folder by a classifier, or by a few labeled images.

    python -m moco_keras.recipes.classify --classifier=saved_models/mine \
        --images=FOLDER --out=labels.csv
    python -m moco_keras.recipes.classify --encoder=saved_models/textures/TIME \
        --labelled=FOLDER --images=FOLDER --out=labels.csv

The classifier is one that `finetune` or `export_classifier` wrote. Or an
encoder and a folder of labeled images, with a folder for each class, from whose
features a logistic regression learns the classes.

labels.csv has the columns file, class and probability, in the order of the
files; what cannot be decoded is skipped, and listed in labels.skipped.csv.
labels.png shows the images that it is least certain of, for you to look at. If
the program is interrupted, the same command resumes where it was.
"""

import concurrent.futures
import csv
import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

from moco_keras import arguments, data, plotting
from moco_keras.evaluation import features, linear_probe
from moco_keras.files import scanning
from moco_keras.recipes import (
    _cli,
    _embed_encoder,
    _embed_files,
    _embed_nearest,
    _embed_parts,
    _embed_run,
    _pictures,
    _settings,
)
from moco_keras.system import versions
from moco_keras.system.paths import printable

_UNCERTAIN = 30  # images that are drawn


@dataclasses.dataclass(frozen=True)
class ClassifySettings(_settings.Bounded):
    """What the program is told."""

    classifier: str | None = _settings.path(
        None, "the classifier: folder of its versions, of one, or of finetune"
    )
    encoder: str | None = _settings.path(
        None, "instead, an encoder: an export or a run; with --labelled"
    )
    labelled: str | None = _settings.path(
        None, "a folder of labeled images, with a folder for each class"
    )
    images: str | None = _settings.path(None, "the folder of images to name")
    out: str = _settings.path("labels.csv", "the file to write")
    batch_size: int = _settings.setting(
        32, "images classified at a time", arguments.COUNT
    )
    on_bad_image: str = _settings.on_bad_image()


def classify(settings):
    """Classifies the folder, and writes the table and the picture."""
    given = [bool(settings.classifier), bool(settings.encoder)]
    if sum(given) != 1 or bool(settings.labelled) != given[1]:
        raise ValueError(
            "Either --classifier must be given, or --encoder and --labelled. "
            f"Received: --classifier={settings.classifier}, "
            f"--encoder={settings.encoder}, --labelled={settings.labelled}."
        )
    if not settings.images:
        raise ValueError("--images must be given: the folder of your images.")
    _embed_run.check_paths(settings, ".csv")
    out = Path(settings.out)
    picture = out.with_suffix(".png")
    # An interrupted command may have drawn the picture; the table is last.
    resumes = bool(_embed_files.unfinished_folders(out))
    for path in (out,) if resumes else (out, picture):
        if path.exists():
            raise FileExistsError(
                "The files that are written must be new. Received: "
                f"{printable(path)}, which exists. Nothing was changed; choose "
                "another --out, or remove it."
            )
    with _embed_run.own(out):
        function = (_classifier if settings.classifier else _probe)(settings)
        images = _embed_parts.find(Path(settings.images))
        about = {
            "classifier": function.digest,
            "images": _embed_files.sha256(b"\0".join(images.fingerprints)),
            "on_bad_image": settings.on_bad_image,
        }

        def finish(joined):
            with np.load(joined) as arrays:
                files, probabilities = arrays["files"], arrays["features"]
            _draw(settings, files, probabilities, function, picture)
            _write(out, files, probabilities, function.names)

        _embed_run.embed(function, images, settings, about, finish)
        for place in _embed_files.unfinished_folders(out):
            shutil.rmtree(place, ignore_errors=True)
    print(f"The classes are in {printable(out)}")


@dataclasses.dataclass(frozen=True)
class _Function:
    """A function from N image files to probabilities (N, classes)."""

    of_files: _embed_encoder.OfFiles
    finish: object  # function from what that returns to probabilities
    names: list[str]
    digest: str  # names what it computes

    def prepare(self, path):
        return self.of_files.prepare(path)

    def why_not(self, path):
        return self.of_files.why_not(path)

    def __call__(self, prepared):
        if not prepared:
            return np.zeros((0, len(self.names)), "float32")
        return self.finish(self.of_files(prepared))


def _classifier(settings):
    """The function of an exported classifier."""
    path = Path(settings.classifier)
    folder = versions.find(path, kind="classifier")
    record = folder and folder / "classifier.json"
    if folder is None or not record.is_file():
        raise FileNotFoundError(
            "--classifier must be the folder of an exported classifier, or one "
            f"that `finetune` wrote. Received: {printable(path)}, where there "
            "is none."
        )
    text = record.read_bytes()
    loaded = tf.saved_model.load(str(folder))

    def open_signature(name):
        serve = loaded.signatures[name]
        (argument,) = serve.structured_input_signature[1]

        def call(given):
            # `loaded` must stay as long as its signatures.
            outputs = (loaded, serve(**{argument: given}))[1]
            return outputs["probabilities"]

        return call

    names = json.loads(text)["classes"]
    of_files = _embed_encoder.OfFiles(text, open_signature, len(names))
    return _Function(of_files, lambda found: found, names, of_files.sha256)


def _probe(settings):
    """The function of an encoder and a regression on labeled images."""
    encoder = _embed_encoder.of_encoder(settings.encoder)
    labelled = data.read_folder(
        settings.labelled, channels=encoder.channels
    ).only_labelled()
    if labelled.skipped:
        print(scanning.summary(labelled.skipped))
    embedded, labels, skipped = [], [], []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in (
            labelled.encoded(None)
            .batch(settings.batch_size)
            .as_numpy_iterator()
        ):
            paths = [Path(os.fsdecode(path)) for path in batch["path"]]
            found = _embed_parts.embed_batch(encoder, paths, pool)
            whole = [path in found.files for path in paths]
            embedded.append(found.features)
            labels.append(batch["label"][whole])
            skipped += found.skipped
    if skipped:
        print(scanning.summary(skipped))
    if not sum(map(len, labels)):
        why = ""
        if skipped:
            path, reason = skipped[0]
            why = f" that can be used; the first is {printable(path)}: {reason}"
        raise ValueError(
            "--labelled must hold a folder of images for each class. "
            f"Received: {printable(settings.labelled)}, with none{why}."
        )
    regression = linear_probe.fit(
        np.concatenate(embedded), np.concatenate(labels)
    )

    def finish(found):
        rows = features.unit_rows(found)
        return regression.predict_proba(rows).astype("float32")

    names = [labelled.class_names[i] for i in regression.classes_]
    digest = f"{encoder.sha256} {labelled.source}"
    return _Function(encoder, finish, names, digest)


def _write(out, files, probabilities, names):
    """Writes the table; names may hold any bytes."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "class", "probability"])
    best = probabilities.argmax(axis=1)
    for file, row, i in zip(files, probabilities, best, strict=True):
        writer.writerow([file, names[i], f"{row[i]:.6f}"])
    partial = out.with_suffix(".writing")
    partial.write_text(text.getvalue(), "utf-8", errors="surrogateescape")
    partial.replace(out)


def _draw(settings, files, probabilities, function, picture):
    """Draws the images with the lowest probability of their class."""
    certainty = probabilities.max(axis=1)
    rows = np.argsort(certainty, kind="stable")[:_UNCERTAIN]
    folder = Path(settings.images)
    shown = [
        (
            str(files[i]),
            f"{certainty[i]:.2f} {function.names[probabilities[i].argmax()]}",
            _embed_nearest.pixels(folder / files[i]),
        )
        for i in rows
    ]
    channels = function.of_files.channels
    _pictures.draw(
        picture, lambda path: plotting.labeled_pictures(shown, path, channels)
    )


if __name__ == "__main__":
    _cli.run(ClassifySettings(), classify)
