r"""Measures what a few labels buy: from scratch, frozen and fine-tuned.

    python -m moco_keras.recipes.few_labels --run_dir=saved_models/textures/TIME
    python -m moco_keras.recipes.few_labels --encoder=FOLDER --data=FOLDER \
        --out=FOLDER

For each number of labels a class it draws labeled images several times, and
trains three classifiers on each draw: the same network from scratch, a logistic
regression on the frozen features of the encoder, and the encoder fine-tuned.
It classifies the test images by each, prints a table of the accuracies, and
writes few_labels.json and few_labels.png into the folder of the run, whose page
then has them, or into --out. Neither the test images nor their labels are used
for anything else here. Without a split test or val, a tenth of each class
tests; if the run was pre-trained on these images, then without their labels.

If it is interrupted, the same command resumes where it was, and more draws or
amounts cost only what they add: each accuracy is kept, in
few_labels_accuracies.json.
"""

import dataclasses
import json
from pathlib import Path

import keras

from moco_keras import arguments, pixel_format, plotting
from moco_keras.evaluation import linear_probe
from moco_keras.models import derived, model_state
from moco_keras.recipes import (
    _classifier_training,
    _cli,
    _feature_files,
    _few_labels_results,
    _label_draws,
    _labeled_data,
    _pictures,
    _record,
    _report,
    _run_files,
    _settings,
    _threads,
    _trained,
)
from moco_keras.system import ownership
from moco_keras.version import __version__

_METHODS = ("scratch", "probe", "finetuned")
# How the networks are trained, each as is best for it by training images that
# were held out.
_TRAINING = {
    "scratch": {"learning_rate": 0.03, "head_multiplier": 1},
    "finetuned": {"learning_rate": 0.01, "head_multiplier": 10},
}
_FLAG = "--labels_per_class"
_USUAL = ", ".join(map(str, _label_draws.USUAL))


@dataclasses.dataclass(frozen=True)
class FewLabelsSettings(_settings.Bounded):
    """What the program is told."""

    run_dir: str | None = _settings.path(
        None, "the folder of a finished run: its encoder and its images"
    )
    encoder: str | None = _settings.path(
        None, "instead of --run_dir: the folder of an export, with --data"
    )
    data: str | None = _settings.path(
        None,
        "labeled images, a folder with a folder for each class or a name of "
        "TensorFlow Datasets; by default those of the run",
    )
    data_dir: str | None = _settings.path(
        None,
        "where TensorFlow Datasets keeps its data; by default as in the run",
    )
    out: str | None = _settings.path(
        None, "the folder for the results; by default that of the run"
    )
    labels_per_class: str | None = _settings.setting(
        None,
        'numbers of labels for each class, or parts of its images, as "1%,10%";'
        f" by default those of {_USUAL} that each class has images for",
    )
    draws: int = _settings.setting(
        5, "how often labels are drawn", arguments.COUNT
    )
    steps: int = _settings.setting(
        600,
        "of each training run, or those of 20 passes over its images if they "
        "are more; give more if that still helps",
        arguments.COUNT,
    )
    seed: int = _settings.setting(0, "of everything random", arguments.SEED)


def few_labels(settings):
    """Measures, and prints and draws the results."""
    amounts = None
    if settings.labels_per_class is not None:
        amounts = _label_draws.parse(settings.labels_per_class, _FLAG)
    folder = _trained.check(settings)
    out = Path(settings.out or settings.run_dir or "")
    if not (settings.out or settings.run_dir):
        raise ValueError(
            "--out must be given with --encoder: a folder for the results."
        )
    encoder = _trained.load(folder / "encoder.keras")
    print("Reading the images ...", flush=True)
    train, test = _trained.read(settings, pixel_format.of(encoder))
    if amounts is None:
        amounts = _label_draws.usual(train.labels)
    for amount in amounts:
        _label_draws.check(amount, train.labels, train.class_names, _FLAG)
    with _run_files.readable_write_errors(out / "few_labels.json"):
        out.mkdir(parents=True, exist_ok=True)
        with (
            ownership.hold(out, "The folder of the results"),
            _run_files.resumable(),
        ):
            measure(settings, amounts, encoder, folder, (train, test), out)


def measure(settings, amounts, encoder, folder, splits, out):
    """Trains and tests all classifiers, and writes the results.

    Args:
        settings: with `draws` and `seed`.
        amounts: `_label_draws.Amount`s.
        encoder: a `keras.Model` from images; its backbone is used.
        folder: a `Path`, of the encoder's version.
        splits: `data.ImageStream`s whose labels are known, to draw labels from
            and to test with.
        out: a `Path`, of the folder for the results.
    """
    train, test = splits
    record = json.loads((folder / "encoder.json").read_text())
    classify = _Classifiers(
        settings, encoder, record["weights"]["sha256"], train, test, out
    )
    measured = _few_labels_results.Measured(
        out / "few_labels_accuracies.json", classify.about
    )
    work = [
        ((amount.name, method, draw), rows)
        for amount in amounts
        for draw in range(settings.draws)
        for rows in [
            _label_draws.draw(amount, train.labels, settings.seed + draw)
        ]
        for method in _METHODS
    ]
    work = [(key, rows) for key, rows in work if key not in measured]
    bar = keras.utils.Progbar(
        sum(classify.num_steps(method, rows) for (_, method, _), rows in work),
        unit_name="step",
    )
    for key, rows in work:
        _, method, draw = key
        measured.add(key, classify(method, rows, draw, lambda: bar.add(1)))
    rows = measured.summary([a.name for a in amounts], _METHODS, settings.draws)
    _run_files.write_json(out / "few_labels.json", rows)
    _pictures.draw(
        out / "few_labels.png", lambda path: plotting.few_labels(rows, path)
    )
    if _record.is_run(out):
        _pictures.draw(
            out / _run_files.REPORT, lambda path: _report.write(out, path)
        )
    _few_labels_results.print_table(rows)
    print(f"The table and its picture are in {out}")


class _Classifiers:
    """The three ways to a classifier; returns the accuracy of each."""

    def __init__(self, settings, encoder, weights_digest, train, test, out):
        self._seed, self._size = settings.seed, encoder.input_shape[1:3]
        self._train, self._test = train, test
        backbone = derived.backbone(encoder)
        precision = sorted(
            {x.compute_dtype for x in model_state.layers(encoder)}
        )
        self._features = [
            _feature_files.read(
                out / "features",
                backbone,
                f"{weights_digest} {precision} {name}",
                stream,
            )
            for stream, name in ((train, "train"), (test, "test"))
        ]
        self._trainers = {
            method: _classifier_training.Trainer(
                encoder, len(train.class_names), steps=settings.steps, **how
            )
            for method, how in _TRAINING.items()
        }
        self.about = {  # all that decides on an accuracy
            "version": __version__,
            "encoder": weights_digest,
            "precision": precision,
            "images": _feature_files.digest(train, self._size),
            "test_images": _feature_files.digest(test, self._size),
            "training": {k: v.about for k, v in self._trainers.items()},
            "seed": settings.seed,
        }

    def num_steps(self, method, rows):
        """Training steps of a method on the images of some rows."""
        if method == "probe":
            return 0
        return self._trainers[method].num_steps(len(rows))

    def __call__(self, method, rows, draw, on_step):
        labels = self._train.labels[rows]
        if method == "probe":
            bank, test = self._features
            return linear_probe.accuracy(
                bank[rows], labels, test, self._test.labels
            )
        trainer = self._trainers[method]
        seed = self._seed + draw
        scratch = method == "scratch"
        weights = trainer.untrained if scratch else trainer.trained
        return trainer.accuracy(
            weights(seed),
            _labeled_data.load_rows(self._train, rows, self._size),
            labels,
            _labeled_data.evaluation_batches(self._test, self._size),
            seed,
            on_step,
        )


def _main(settings):
    _threads.share_cores()
    few_labels(settings)


if __name__ == "__main__":
    _cli.run(FewLabelsSettings(), _main)
