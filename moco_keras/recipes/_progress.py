"""What a training run is about to do, and how long it will take, in words."""

import dataclasses
import shlex
import time

import keras

from moco_keras.distribution import accelerators
from moco_keras.files.progress import duration
from moco_keras.recipes._defaults import power_of_two
from moco_keras.recipes._memory import Memory, gigabytes, num_memories

_FEW = 100  # images, too few to learn from


def print_overview(asked, settings, model, images, strategy):
    """Prints what a training run is about to do.

    Args:
        asked: `Settings` as they were given, None for what was not.
        settings: the same, complete.
        model: that of the settings.
        images: `_data.Images`.
        strategy: that trains.
    """
    encoder, train = model.query_encoder, images.train
    height, width, channels = model.view_encoders[0].input_shape[1:]
    steps = train.num_examples // settings.batch_size
    steps = settings.steps_per_epoch or steps
    need = Memory.of(model, settings).needed(
        settings.batch_size / num_memories(strategy)
    )
    free = accelerators.free_memory()
    of_free = "" if free is None else f", of {gigabytes(free)} that are free"
    replicas = strategy.num_replicas_in_sync
    devices = "" if replicas == 1 else f" on {replicas} devices"
    plural = "" if settings.batch_size == 1 else "s"
    lines = {
        "images": f"{train.num_examples:,} to train on, of {train.source}",
        "encoder": f"{settings.backbone}, width {settings.width}, "
        f"{_stem(encoder)} stem, {_head(settings)}: "
        f"{encoder.count_params():,} parameters",
        "views": f"{height}x{width} pixels, {channels} "
        f"channel{'s' * (channels > 1)}, {settings.augmentation}",
        "batch": f"{settings.batch_size:,} image{plural}{devices}, "
        f"learning rate {settings.learning_rate:g}",
        "queue": f"{settings.queue_size:,} keys",
        "epochs": f"{settings.epochs:,} of {steps:,} steps, "
        f"{settings.epochs * steps:,} in all",
        "memory": f"about {gigabytes(need)}{of_free}",
    }
    chosen = [
        f"--{field.name}={getattr(settings, field.name)}"
        for field in dataclasses.fields(settings)
        if getattr(asked, field.name) is None
        and getattr(settings, field.name) is not None
    ]
    for name, words in lines.items():
        print(f"  {name:<9}{words}")
    if chosen:
        print(f"Chosen to fit, where no flag was given: {' '.join(chosen)}")
    if train.num_examples < _FEW:
        print(
            f"Note: {train.num_examples:,} images are too few to learn from. "
            "Some thousands are a good beginning."
        )
    keys_of_a_step = settings.batch_size * (1 + settings.symmetric)
    fitting = max(power_of_two(train.num_examples / 2), keys_of_a_step)
    if settings.queue_size > max(train.num_examples, fitting):
        print(
            f"Note: the queue of {settings.queue_size:,} keys is longer than "
            f"the {train.num_examples:,} images: most negatives are older keys "
            f"of images that it holds already. --queue_size={fitting} would "
            "fit."
        )
    print(end="", flush=True)


def _head(settings):
    return "no head" if settings.head == "none" else f"{settings.head} head"


def _stem(encoder):
    strides = encoder.get_layer("stem_conv").strides
    return "cifar" if strides == (1, 1) else "imagenet"


class Pace(keras.callbacks.Callback):
    """Says that the first step takes long, and then how long the rest will.

    Args:
        folder: of the run.
    """

    _SECONDS, _STEPS = 15, 3  # to measure
    _SHORT = 10  # seconds that are not worth a line

    def __init__(self, folder):
        super().__init__()
        self._folder, self._seen, self._said = folder, 0, False

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if not self._seen:
            print("Compiling the first step ...", flush=True)

    def on_train_batch_end(self, batch, logs=None):
        if self._said:
            return
        now = time.monotonic()
        if not self._seen:
            self._began = now  # the first step is compiled, too
        seconds = now - self._began
        enough = self._seen >= self._STEPS and seconds >= self._SECONDS
        steps = self.params["steps"]
        if enough or (self._seen and batch + 1 == steps):
            self._say(seconds / self._seen * steps, batch)
        self._seen += 1

    def _say(self, of_epoch, batch):
        self._said = True
        done = self._epoch + (batch + 1) / self.params["steps"]
        left = (self.params["epochs"] - done) * of_epoch
        if left < self._SHORT:
            return
        print(
            f"\nAbout {duration(of_epoch)} an epoch, "
            f"{duration(left)} to the end, without evaluations. "
            "Ctrl-C saves and stops; the same command with "
            f"{how_to_resume(self._folder)} resumes.",
            flush=True,
        )


def how_to_resume(folder):
    """The flag that resumes the run in a folder."""
    return f"--run_dir={shlex.quote(str(folder))}"
