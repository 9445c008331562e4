"""What fine-tuning leaves in its folder."""

import dataclasses
import hashlib
import heapq
import itertools
import json
import shutil

import keras
import numpy as np

import moco_keras
from moco_keras import pixel_format, plotting
from moco_keras.models import classifier
from moco_keras.recipes import _labeled_data, _pictures, _record, _run_files
from moco_keras.system.paths import printable

_MISTAKES = 24  # that are drawn
# Settings that do not change what is trained.
_MAY_CHANGE = ("data_dir", "out", "strategy", "data", "encoder")


def begin(out, settings, splits):
    """Writes settings.json, or checks that the folder is of these settings.

    Args:
        out: the folder, a `Path`.
        settings: `FinetuneSettings`, complete.
        splits: `_finetune_data.Splits`.

    Returns:
        Whether the results are there already.

    Raises:
        FileExistsError: if the folder is of other settings or images.
    """
    encoder = classifier.encoder_file(settings.encoder).read_bytes()
    record = {
        "settings": dataclasses.asdict(settings),
        "encoder": hashlib.sha256(encoder).hexdigest(),
        # Of a folder the digest alone: it may have been moved or renamed.
        "images": [
            None if stream is None else stream.source.rpartition(" ")[2]
            for stream in (splits.train, splits.validation, splits.test)
        ],
        "classes": splits.class_names,
    }
    file = out / "settings.json"
    if file.exists():
        try:
            found = json.loads(file.read_text())
            changed = _differences(found, record)
        except (ValueError, KeyError, TypeError, AttributeError):
            changed = ["settings.json, which is damaged"]
        if changed:
            raise FileExistsError(
                "--out must be a new folder, or that of the same command. "
                f"Received: {printable(out)}, where these differ: "
                f"{', '.join(changed)}. Nothing was changed; choose another."
            )
    else:
        _run_files.write_json(file, record)
    return (out / "metrics.json").exists()


def _differences(found, record):
    before, now = found["settings"], record["settings"]
    names = [f"--{x}" for x in now if x not in _MAY_CHANGE]
    changed = [x for x in names if before.get(x[2:]) != now[x[2:]]]
    return changed + [
        name
        for name in ("encoder", "images", "classes")
        if found.get(name) != record[name]
    ]


class Keep(keras.callbacks.Callback):
    """Keeps the model after each epoch, and the best; ends without a better.

    Args:
        out: the folder, a `Path`.
        history: `_history.History`, before this among the callbacks.
        patience: epochs in which a better one must come.
    """

    def __init__(self, out, history, patience):
        super().__init__()
        self._out, self._history, self._patience = out, history, patience

    def on_epoch_end(self, epoch, logs=None):
        if self._best(epoch + 1) == epoch:
            self._save("best.keras")
        self.model.stop_training = self.is_over(epoch + 1)
        self._save("last.keras")

    def is_over(self, epochs):
        """Whether the best of so many epochs is too long ago."""
        best = self._best(epochs)
        return best is not None and epochs - 1 - best >= self._patience

    def _best(self, epochs):
        """The best of the first epochs, or None if there is no validation."""
        accuracies = [
            e["val_accuracy"]
            for e in self._history.epochs[:epochs]
            if "val_accuracy" in e
        ]
        return accuracies.index(max(accuracies)) if accuracies else None

    def _save(self, name):
        path = self._out / name
        with _run_files.readable_write_errors(path):
            partial = path.with_name(f"partial-{name}")
            self.model.save(partial)
            partial.replace(path)


def write(out, model, settings, splits):
    """Tests the classifier, exports it, and writes metrics and pictures.

    Args:
        out: the folder, a `Path`.
        model: the best or the last `keras.Model`.
        settings, splits: as in `begin`.
    """
    print("\nTesting the classifier ...", flush=True)
    metrics = {
        "train_images": splits.train.num_examples,
        "classes": len(splits.class_names),
    }
    found = {
        name: _test(model, stream, len(splits.class_names))
        for name in ("validation", "test")
        if (stream := getattr(splits, name)) is not None
    }
    for name, (confusion, _) in found.items():
        metrics[f"{name}_images"] = int(confusion.sum())
        metrics[f"{name}_accuracy"] = float(
            np.trace(confusion) / confusion.sum()
        )
    # Of an interrupted command, if any.
    shutil.rmtree(out / "classifier", ignore_errors=True)
    moco_keras.export_classifier(
        model,
        out / "classifier",
        splits.class_names,
        image_dtype=splits.train.image_dtype,
        format=settings.format,
        training={
            "settings": _record.without_places(dataclasses.asdict(settings)),
            "data": splits.train.source,
            "metrics": metrics,
        },
    )
    if found:
        name = list(found)[-1]  # test, where there is one
        confusion, mistakes = found[name]
        names = splits.class_names
        for file, draw in {
            "confusion.png": lambda path: plotting.confusion(
                confusion, names, path
            ),
            "mistakes.png": lambda path: plotting.mistakes(
                mistakes, names, path, splits.train.channels
            ),
        }.items():
            _pictures.draw(out / file, draw)
        metrics["confusion"] = confusion.tolist()
    _run_files.write_json(out / "metrics.json", metrics)
    for name in ("last.keras", "best.keras"):
        (out / name).unlink(missing_ok=True)
    for name in found:
        print(
            f"Accuracy on {metrics[f'{name}_images']:,} {name} images: "
            f"{metrics[f'{name}_accuracy']:.3f}"
        )
    print(f"The classifier is in {printable(out / 'classifier')}")


def _test(model, stream, num_classes):
    """The confusion matrix, and the mistakes that it was most certain of.

    Returns:
        int64 (classes, classes), images by true and by predicted class; and
        tuples (certainty, true, predicted, uint8 (S, S, 3)), the most certain
        first.
    """
    confusion = np.zeros((num_classes, num_classes), "int64")
    worst, numbers = [], itertools.count()
    bounds = pixel_format.of(model).bounds
    batches = _labeled_data.evaluation_batches(stream, model.input_shape[1:3])
    for images, labels in batches.as_numpy_iterator():
        logits = model.predict_on_batch(images)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        predicted = probabilities.argmax(axis=1)
        np.add.at(confusion, (labels, predicted), 1)
        for i in np.flatnonzero(predicted != labels):
            entry = (
                float(probabilities[i, predicted[i]]),
                -next(numbers),  # earlier images first; never the pictures
                int(labels[i]),
                int(predicted[i]),
                plotting.as_rgb(images[i], bounds),
            )
            heapq.heappush(worst, entry)
            if len(worst) > _MISTAKES:
                heapq.heappop(worst)
    worst.sort(reverse=True)
    return confusion, [(p, *rest) for p, _, *rest in worst]
