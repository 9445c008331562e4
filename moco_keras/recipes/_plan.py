"""What a training is about to do: defaults that fit, memory, and time."""

import dataclasses
import json
import math
import shlex
import sys
import time
from typing import NamedTuple

import keras
import tensorflow as tf

from moco_keras import distribution
from moco_keras.distribution import accelerators
from moco_keras.recipes import _run_dir, _settings

# Where a flag of `_settings.FITTED` is not given. docs/training.md has the
# same tables.
OF_DEVICE = {  # by whether it is a GPU
    False: {"encoder": "resnet18", "width": 64, "image_size": 96},
    True: {"encoder": "resnet50", "width": 64, "image_size": 224},
}
OF_IMAGES = [
    # fewer images than: batch size, momentum
    (2_000, 64, 0.99),
    (20_000, 128, 0.99),
    (200_000, 256, 0.99),
    (math.inf, 256, 0.999),
]
OF_EPOCHS = {  # by whether it is a GPU: images in all epochs; least, most
    False: (1_000_000, 5, 400),
    True: (4_000_000, 200, 800),
}
_LARGEST_QUEUE = 65536
# Of the backbones at width 64; they grow with its square.
_WEIGHTS = {"resnet18": 11.2e6, "resnet34": 21.3e6, "resnet50": 23.5e6}
_LEARNING_RATE = 0.03 / 256  # of each image of the batch
_GROUP = 32  # images that batch norm takes together, on a GPU in the papers
_SMALLEST_BATCH = 8  # that is chosen unasked, of so many images
_FEW = 100  # images, too few to learn from

# Of the estimate of memory, from measurements: docs/performance.md.
_FIXED = 350 * 2**20  # compiled steps, threads
_COPIES = 6  # of an encoder's weights: optimizer, gradients, checkpoint, export
_OF_OUTPUTS = 1.25  # times what the layers return: with gradients and keys
_WAITING = 4  # batches of views
_EVALUATED = 256  # images at a time, see `features.outputs`
_OF_LARGEST = 3.6  # times what the largest layer returns
_KEPT = 0.4  # of what a step or an evaluation took, while the other runs


def for_device(settings, strategy):
    """The settings, where none was given what fits the chief's device.

    A run that is resumed keeps what it began with, on any device.
    """

    def choose():
        chosen = {
            "precision": accelerators.default_precision(),
            **OF_DEVICE[accelerators.on_gpu()],
        }
        if settings.run_dir:
            for name in ("precision", *_settings.FITTED):
                before = _run_dir.begun_with(settings.run_dir, name)
                if before is not None:
                    chosen[name] = before
        return chosen

    return _completed(settings, choose, strategy)


def for_images(settings, num_images, strategy):
    """The settings, where none was given what fits the number of images.

    Raises:
        ValueError: on the chief, if a number cannot be chosen, or if the model
            alone needs more memory than is free.
    """

    def choose():
        replicas = strategy.num_replicas_in_sync
        fits = what_fits(settings, num_images, accelerators.on_gpu(), replicas)
        given = {n: v for n, v in vars(settings).items() if v is not None}
        _check_model(dataclasses.replace(settings, **{**fits, **given}))
        return fits

    return _completed(settings, choose, strategy)


def _check_model(settings):
    """Refuses a model that there is no room for, before it is made.

    To make it could take minutes, and then end the process.
    """
    features = settings.width * (32 if settings.encoder == "resnet50" else 8)
    # At the least: both encoders and the optimizer's momentum; the queue.
    needs = {
        "width": 12 * _WEIGHTS[settings.encoder] * (settings.width / 64) ** 2,
        "projection_dim": 12 * features * settings.projection_dim,
        "queue_size": 4 * settings.queue_size * settings.projection_dim,
    }
    need, free = sum(needs.values()), accelerators.free_memory()
    if free is None or need <= free or _goes_on(settings):
        return
    largest = max(needs, key=needs.get)
    raise ValueError(
        "A model must fit the memory that is free. Received: "
        + ", ".join(f"--{name}={getattr(settings, name)}" for name in needs)
        + f", which need {_size(need)} or more; {_size(free)} are free. Lower "
        f"--{largest}, which takes most of it."
    )


def what_fits(settings, num_images, on_gpu, replicas=1, most=math.inf):
    """Settings that fit a number of images.

    Args:
        settings: `Settings`, None where it is to be chosen.
        num_images: to train on.
        on_gpu: whether the device is a GPU.
        replicas: devices that share each batch.
        most: images in a batch that memory has room for.

    Returns:
        A dict, of settings that were given, too.

    Raises:
        ValueError: if --bn_splits was given and no batch can have so many
            groups.
    """
    batch_size, momentum = next(
        row[1:] for row in OF_IMAGES if num_images < row[0]
    )
    views = 1 + settings.symmetric
    if settings.batch_size is None:
        eighth = max(num_images / 8, min(_SMALLEST_BATCH, num_images))
        keys = settings.queue_size or math.inf
        batch_size = _power_of_two(min(batch_size, eighth, keys / views, most))
        step = math.lcm(replicas, settings.bn_splits or 1)
        room = min(num_images, keys / views)
        least = step if 2 * step > room else 2 * step  # no group of one image
        batch_size = max(batch_size - batch_size % step, least)
        if settings.bn_splits and step > room:
            queue = settings.queue_size
            raise ValueError(
                "--bn_splits must not be more than the training images, or "
                "than the images of a step whose keys the queue holds. "
                f"Received: --bn_splits={settings.bn_splits}, {num_images} "
                "images"
                + (f", --queue_size={queue}" if queue else "")
                + (f", {replicas} devices" if replicas > 1 else "")
                + ". Lower --bn_splits."
            )
    else:
        batch_size = settings.batch_size
    share = max(1, batch_size // replicas)
    groups = max(2, batch_size // _GROUP) // replicas
    groups = max(1, min(groups, share // 2))  # of two images at least
    half = min(_power_of_two(num_images / 2), _LARGEST_QUEUE)
    images_seen, least, most_epochs = OF_EPOCHS[on_gpu]
    epochs = min(max(round(images_seen / num_images), least), most_epochs)
    return {
        "batch_size": batch_size,
        "bn_splits": math.gcd(groups, share) * replicas,
        "queue_size": max(half, batch_size * views),
        "momentum": momentum,
        "epochs": epochs,
        "learning_rate": _LEARNING_RATE * batch_size,
    }


def for_memory(settings, asked, model, num_images, strategy):
    """The settings, with a smaller batch where memory asks for it.

    Args:
        settings: `Settings`, complete.
        asked: the same without those that fit the number of images.
        model: that of the settings.
        num_images: to train on.
        strategy: that trains.

    A run that goes on from a checkpoint keeps its settings, with a warning.

    Raises:
        ValueError: on the chief, if there is not enough memory for the batch
            that was given, or for the smallest.
    """
    replicas = strategy.num_replicas_in_sync

    def choose():
        memory, free = Memory.of(model, settings), accelerators.free_memory()
        devices = _memories(strategy)
        need = memory.needed(settings.batch_size / devices)
        if free is None or need <= free:
            return dataclasses.asdict(settings)
        if _goes_on(settings):
            print(
                f"Warning: this run may need about {_size(need)} of memory, "
                f"and {_size(free)} are free. It goes on, for it began with "
                "these settings. If it is killed, free memory, and give the "
                "same command again.",
                file=sys.stderr,
                flush=True,
            )
            return dataclasses.asdict(settings)
        most = memory.room_for(free) * devices
        fits = what_fits(
            asked, num_images, accelerators.on_gpu(), replicas, most
        )
        if _SMALLEST_BATCH <= fits["batch_size"] <= most:
            print(
                f"--batch_size={fits['batch_size']} was chosen: for batches of "
                f"{settings.batch_size} images {_size(need)} of memory would "
                f"be needed, and {_size(free)} are free.",
                flush=True,
            )
            return fits
        step = math.lcm(replicas, settings.bn_splits)
        most -= most % step
        side = model.query_encoder.input_shape[1]
        raise ValueError(
            "A training must fit the memory that is free. Received: "
            f"--batch_size={settings.batch_size}, --encoder={settings.encoder}"
            f", --width={settings.width} and images of {side}x{side} pixels, "
            f"which need about {_size(need)}; {_size(free)} are free. "
            + (f"Set --batch_size={most}, or lower" if most > 0 else "Lower")
            + " --width, or --image_size where the program has it, or take a "
            "smaller --encoder."
        )

    return _completed(asked, choose, strategy)


class Memory(NamedTuple):
    """An estimate of what a training needs beside the model, in bytes.

    Attributes:
        fixed: for the weights' copies, compiled steps, threads and files.
        of_image: for each image of a step.
        evaluation: for the images that are evaluated at a time.
    """

    fixed: int
    of_image: int
    evaluation: int

    @classmethod
    def of(cls, model, settings):
        """That of a `MoCo` in a program with these settings."""
        encoder = model.query_encoder
        outputs = [
            tf.as_dtype(output.dtype).size * math.prod(output.shape[1:])
            for layer in encoder.layers
            for output in keras.tree.flatten(layer.output)
        ]
        views = 2 * 4 * math.prod(encoder.input_shape[1:])
        times = 1 + settings.symmetric
        return cls(
            fixed=_FIXED
            + _COPIES * 4 * encoder.count_params()
            + 2 * 4 * math.prod(model.queue.keys.shape),
            of_image=math.ceil(
                _OF_OUTPUTS * sum(outputs) * times
                + _WAITING * views
                + 2 * 4 * settings.queue_size * times
            ),
            evaluation=math.ceil(_EVALUATED * _OF_LARGEST * max(outputs)),
        )

    def needed(self, images):
        """Bytes for a training in steps of so many images."""
        step = self.of_image * images
        both = sorted((step, self.evaluation))
        return self.fixed + math.ceil(both[1] + _KEPT * both[0])

    def room_for(self, free):
        """The most images in a step for which so many bytes are enough."""
        left = free - self.fixed
        step = min(
            left - _KEPT * self.evaluation, (left - self.evaluation) / _KEPT
        )
        return max(0, int(step / self.of_image))


def _goes_on(settings):
    """Whether a run has a checkpoint, with which its settings must agree."""
    return bool(settings.run_dir) and _run_dir.has_checkpoint(settings.run_dir)


def _memories(strategy):
    """How many share a batch that have a memory of their own."""
    if accelerators.on_gpu():
        return strategy.num_replicas_in_sync
    return distribution.num_workers(strategy)


def _size(number):
    return f"{number / 1e9:.1f} GB"


def say(asked, settings, model, images, strategy):
    """Prints what a training is about to do.

    Args:
        asked: `Settings`, None where nothing was given.
        settings: the same, complete.
        model: that of the settings.
        images: `_pretrain.Images`.
        strategy: that trains.
    """
    encoder, train = model.query_encoder, images.train
    side = encoder.input_shape[1]
    steps = train.num_examples // settings.batch_size
    need = Memory.of(model, settings).needed(
        settings.batch_size / _memories(strategy)
    )
    free = accelerators.free_memory()
    of_free = "" if free is None else f", of {_size(free)} that are free"
    replicas = strategy.num_replicas_in_sync
    devices = "" if replicas == 1 else f" on {replicas} devices"
    plural = "" if settings.batch_size == 1 else "s"
    lines = {
        "images": f"{train.num_examples:,} to train on, of {train.source}",
        "encoder": f"{settings.encoder}, width {settings.width}, "
        f"{_stem(encoder)} stem, {settings.head} head: "
        f"{encoder.count_params():,} parameters",
        "views": f"{side}x{side} pixels, {settings.augmentation}",
        "batch": f"{settings.batch_size:,} image{plural}{devices}, "
        f"learning rate {settings.learning_rate:g}",
        "queue": f"{settings.queue_size:,} keys",
        "epochs": f"{settings.epochs:,} of {steps:,} steps, "
        f"{settings.epochs * steps:,} in all",
        "memory": f"about {_size(need)}{of_free}",
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
    fitting = max(_power_of_two(train.num_examples / 2), keys_of_a_step)
    if settings.queue_size > max(train.num_examples, fitting):
        print(
            f"Note: the queue of {settings.queue_size:,} keys is longer than "
            f"the {train.num_examples:,} images: most negatives are older keys "
            f"of images that it holds already. --queue_size={fitting} would "
            "fit."
        )
    print(end="", flush=True)


def _stem(encoder):
    return (
        "cifar"
        if encoder.get_layer("stem_conv").strides == (1, 1)
        else ("imagenet")
    )


class Pace(keras.callbacks.Callback):
    """Says that the first step takes long, and then how long the rest will.

    Args:
        folder: of the run.
    """

    _SECONDS, _STEPS = 15, 3  # to measure
    _SHORT = 10  # seconds of which nothing is said

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
            f"\nAbout {_duration(of_epoch)} an epoch, "
            f"{_duration(left)} to the end, without evaluations. "
            "Ctrl-C saves and stops; the same command with "
            f"{how_to_resume(self._folder)} resumes.",
            flush=True,
        )


def _duration(seconds):
    """A time in words, with two digits at most."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} seconds"


def how_to_resume(folder):
    """The flag that resumes the run in a folder."""
    return f"--run_dir={shlex.quote(str(folder))}"


def _power_of_two(most):
    return 2 ** math.floor(math.log2(max(most, 1)))


def _completed(settings, choose, strategy):
    """Settings with the chief's choice of what was not given.

    Args:
        choose: function that returns a dict of settings.
    """
    chosen = {}
    if distribution.is_chief(strategy):
        chosen = {
            name: value
            for name, value in choose().items()
            if name in ("precision", *_settings.FITTED)
            and getattr(settings, name, "") in (None, "auto")
        }
    letters = list(json.dumps(chosen).encode().ljust(1024))
    letters = distribution.broadcast(
        {"letters": tf.constant(letters, "int32")}, strategy
    )["letters"]
    chosen = json.loads(bytes(letters.numpy().tolist()))
    return dataclasses.replace(settings, **chosen)
