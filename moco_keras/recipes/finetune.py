r"""Fine-tunes an encoder into a classifier, tests it, and exports it.

    python -m moco_keras.recipes.finetune --encoder=saved_models/textures/TIME \
        --data=FOLDER --out=saved_models/my_classifier

FOLDER holds a folder of images for each class; or folders train, val and test
with these in them; or it is the name of a data set of TensorFlow Datasets. The
images of val, or else a tenth of those of train, choose the best epoch, at
which the classifier is tested on the images of test, if there are any.

It leaves in --out: classifier/1, for TensorFlow Serving and others, with its
model card; metrics.json, history.csv and settings.json; confusion.png, the
confusion matrix; mistakes.png, the mistakes that it was most certain of.

--protocol trains as a publication does, for as many epochs, and tests the last
one: moco_linear and moco_v3_linear train a linear layer on the frozen backbone;
swav_1_percent, swav_10_percent, vicreg_1_percent and vicreg_10_percent
fine-tune. If it is interrupted, the same command resumes at the last epoch.
"""

import dataclasses
import math
from pathlib import Path

import keras

import moco_keras
from moco_keras import (
    arguments,
    augmentations,
    data,
    distribution,
    pixel_format,
)
from moco_keras.evaluation import protocols
from moco_keras.export import runtimes
from moco_keras.models import classifier
from moco_keras.recipes import (
    _classifier_training,
    _cli,
    _finetune_data,
    _finetune_results,
    _history,
    _labeled_data,
    _run_files,
    _settings,
    _trained,
)
from moco_keras.system import ownership
from moco_keras.system.paths import printable

_PROTOCOLS = {
    "moco_linear": protocols.MOCO_LINEAR,
    "moco_v3_linear": protocols.MOCO_V3_LINEAR,
    "swav_1_percent": protocols.SWAV_1_PERCENT,
    "swav_10_percent": protocols.SWAV_10_PERCENT,
    "vicreg_1_percent": protocols.VICREG_1_PERCENT,
    "vicreg_10_percent": protocols.VICREG_10_PERCENT,
}
_STEPS = 2000  # about, by default
_EPOCHS = (10, 200)  # the fewest and the most by default
# Part of the epochs in which a better one must come, and their least number.
_PATIENCE = 0.3
_LEAST_PATIENCE = 5


@dataclasses.dataclass(frozen=True)
class FinetuneSettings(_settings.Bounded):
    """What the program is told."""

    encoder: str | None = _settings.path(
        None,
        "the trained encoder: an export, a run, or a .keras file",
    )
    data: str | None = _settings.path(
        None, "labeled images: a folder, or a name of TensorFlow Datasets"
    )
    data_dir: str | None = _settings.path(
        None, "where TensorFlow Datasets keeps its data"
    )
    labels: str | None = _settings.path(
        None,
        "a text file: the names of the images to train with, one on each line; "
        "those of val and test are not limited",
    )
    out: str | None = _settings.path(None, "the folder for the results")
    protocol: str = _settings.setting(
        "auto",
        "how to train: all of the encoder until it no longer improves, or as "
        "a publication does",
        choices=("auto", *_PROTOCOLS),
    )
    epochs: int | None = _settings.setting(
        None, "at most; by default what fits the images", arguments.COUNT
    )
    batch_size: int | None = _settings.setting(
        None, "images in a step; by default the protocol's", arguments.COUNT
    )
    learning_rate: float | None = _settings.setting(
        None, "at first; by default the protocol's", arguments.POSITIVE
    )
    min_area: float = _settings.setting(
        0.08,
        "smallest part of an image that a training crop shows",
        arguments.POSITIVE_FRACTION,
    )
    format: str | None = _settings.setting(
        None,
        "for which other runtime to write it too; onnx needs .[onnx]",
        choices=("onnx", "litert"),
    )
    strategy: str = _settings.setting(
        "auto",
        "over which devices a step is spread",
        choices=("auto", "none", "mirrored"),
    )
    seed: int = _settings.setting(0, "of everything random", arguments.SEED)
    on_bad_image: str = _settings.on_bad_image()


def finetune(settings):
    """Trains, tests and exports, unless that is done."""
    for name in ("encoder", "data", "out"):
        if not getattr(settings, name):
            raise ValueError(f"--{name} must be given; --help says what it is.")
    file = classifier.encoder_file(settings.encoder)  # or that is said at once
    if not Path(file).is_file():
        raise FileNotFoundError(
            "--encoder must be an export, a run, or a .keras file. Received: "
            f"{printable(settings.encoder)}, which is not there."
        )
    if settings.format is not None:
        runtimes.check(settings.format)  # before hours of training
    out = Path(settings.out)
    with _run_files.readable_write_errors(out / "settings.json"):
        out.mkdir(parents=True, exist_ok=True)
        with (
            ownership.hold(out, "The folder of --out"),
            _run_files.resumable(),
        ):
            _finetune(settings, out)


def _finetune(settings, out):
    strategy = distribution.strategy(settings.strategy)
    print(f"Training on: {distribution.describe(strategy)}")
    print("Reading the images ...", flush=True)
    published = _PROTOCOLS.get(settings.protocol)
    encoder = _trained.load(classifier.encoder_file(settings.encoder))
    pixels = pixel_format.of(encoder)
    keras.utils.set_random_seed(settings.seed)  # after what loading draws
    splits = _finetune_data.read(settings, published is None, pixels)
    for note in splits.notes:
        print(note)
    settings, protocol = _complete(settings, published, splits.train)
    if _finetune_results.begin(out, settings, splits):
        print(f"The results of this command are in {printable(out)}")
        return
    last = out / "last.keras"
    with strategy.scope():
        if last.exists():
            model = keras.saving.load_model(last)
        else:
            model = _build(encoder, settings, protocol, splits)
    _train(model, settings, protocol, splits, out)
    chosen = last if splits.validation is None else out / "best.keras"
    model = keras.saving.load_model(chosen)  # on one device
    _finetune_results.write(out, model, settings, splits)


def _complete(settings, protocol, train):
    """The settings with what was left open, and their protocol."""
    if protocol is None:
        protocol = protocols.Protocol("all", 0.03, epochs=1, batch_size=64)
        least, most = _EPOCHS
        epochs = _STEPS * protocol.batch_size // train.num_examples
        protocol = protocol._replace(epochs=min(max(epochs, least), most))
    settings = dataclasses.replace(
        settings,
        epochs=settings.epochs or protocol.epochs,
        batch_size=settings.batch_size or protocol.batch_size,
        learning_rate=settings.learning_rate or protocol.learning_rate,
    )
    return settings, protocol._replace(learning_rate=settings.learning_rate)


def _steps(settings, train):
    return math.ceil(train.num_examples / settings.batch_size)


def _build(encoder, settings, protocol, splits):
    model = classifier.build_classifier(
        encoder,
        len(splits.class_names),
        trainable=protocol.trainable,
    )
    model.compile(
        protocol.optimizer(
            _steps(settings, splits.train),
            settings.batch_size,
            settings.epochs,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # The same step on every device.
        jit_compile=False,
    )
    return model


def _train(model, settings, protocol, splits, out):
    """Trains from the epoch after the last that was kept."""
    size, steps = model.input_shape[1:3], _steps(settings, splits.train)
    done = int(model.optimizer.iterations) // steps
    history = _history.History(out / "history.csv")
    # Keras does not save the states of random layers.
    reseed = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: (
            _classifier_training.seed_random_layers(
                model, settings.seed + epoch
            )
        )
    )
    callbacks = [moco_keras.callbacks.StopOnNaN(), history, reseed]
    if protocol.trainable == "head":
        callbacks.append(moco_keras.callbacks.CheckFrozen())
    keep = _finetune_results.Keep(
        out,
        history,
        max(_LEAST_PATIENCE, math.ceil(_PATIENCE * settings.epochs)),
    )
    if keep.is_over(done):
        return
    callbacks.append(keep)
    validation = None
    if splits.validation is not None:
        validation = _labeled_data.evaluation_batches(splits.validation, size)
    model.fit(
        data.labeled_batches(
            splits.train,
            augmentations.crop_and_flip(size, settings.min_area),
            settings.batch_size,
            seed=settings.seed,
            start=done * steps,
            value_range=pixel_format.of(model).value_range,
        ),
        steps_per_epoch=steps,
        epochs=settings.epochs,
        initial_epoch=done,
        validation_data=validation,
        callbacks=callbacks,
        shuffle=False,  # it is shuffled
    )


if __name__ == "__main__":
    _cli.run(FinetuneSettings(), finetune)
