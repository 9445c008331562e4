"""Settings of the programs: frozen dataclasses, which become flags."""

import dataclasses

from moco_keras import arguments, distribution
from moco_keras.arguments import COUNT
from moco_keras.models import encoders, resnet
from moco_keras.recipes import _pixels
from moco_keras.training import checkpoint

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# What a program may leave open, None: see `_defaults`.
FITTED = (
    "backbone",
    "width",
    "image_size",
    "batch_size",
    "bn_splits",
    "queue_size",
    "epochs",
    "momentum",
    "learning_rate",
)


def setting(default, help, kind=None, choices=None, path=False):
    """A field with its default, its help, and what its values may be.

    Args:
        default, help: of the flag.
        kind: an `arguments.Kind`, of every number.
        choices: names that are allowed, or None for all.
        path: whether it is a path, in which ~ is the home folder.
    """
    metadata = {"help": help, "kind": kind, "choices": choices, "path": path}
    return dataclasses.field(default=default, metadata=metadata)


def path(default, help):
    """A field for a path, a text or an `os.PathLike`, kept as a text."""
    return setting(default, help, path=True)


def image_size():
    """The field of programs whose images may have any size."""
    return setting(
        None,
        "side of the images in pixels; or height and width, such as 128x256",
    )


def on_bad_image():
    """The field of every program that reads a folder of images."""
    return setting(
        "skip",
        "what to do with files that cannot be decoded: skip and list them, or "
        "end with an error at the first",
        choices=("skip", "error"),
    )


def _is_period(text):
    try:
        checkpoint.parse_interval(text)
    except ValueError:
        return False
    return True


_PERIOD = arguments.Kind(
    'a number of steps or minutes, such as "500 steps" or "10 minutes"',
    _is_period,
)


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Settings of a program, of fields made by `setting`."""

    def __post_init__(self):
        """Refuses values that cannot be meant, all before any work."""
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            kind = field.metadata["kind"]
            if value is None:
                continue
            if kind and not kind.holds(value):
                raise arguments.refusal(f"--{name}", value, kind.words)
            # TFDS's --data_dir may be a URL.
            if field.metadata["path"] and "://" not in str(value):
                value = arguments.path(**{f"--{name}": value})
                object.__setattr__(self, name, str(value))


@dataclasses.dataclass(frozen=True)
class Settings(Bounded):
    """What a training run is told; by default as the paper's notebook."""

    data_dir: str | None = path(
        None,
        "where TensorFlow Datasets keeps its data; by default the environment "
        "variable MOCO_KERAS_DATA_DIR, or else its own default",
    )
    output_dir: str = path(
        "saved_models",
        "the folder of all runs, in which each gets one named PROGRAM/TIME",
    )
    run_dir: str | None = path(
        None,
        "the folder of this run, instead of one in --output_dir; a run that "
        "was interrupted there resumes from its last checkpoint, and a "
        "finished one continues with more --epochs",
    )
    init_from: str | None = path(
        None,
        "begin with the weights, the key encoder and the queue of this .keras "
        "file, such as the model.keras of another run; the schedule is new",
    )
    checkpoint_every: str = setting(
        "1 minute", "how often a run is saved, in steps or minutes", _PERIOD
    )
    train_examples: int | None = setting(
        None, "train on the first N of a fixed shuffle; all by default", COUNT
    )
    test_examples: int | None = setting(
        None, "test on the first N of a fixed shuffle; all by default", COUNT
    )
    backbone: str | None = setting(
        "resnet18",
        "architecture of the encoder, without its head",
        choices=resnet.NAMES,
    )
    stem: str = setting(
        "auto",
        "first layers: for CIFAR's size, ImageNet's, or what fits the images",
        choices=("auto", "cifar", "imagenet"),
    )
    width: int | None = setting(64, "channels of the first stage", COUNT)
    head: str = setting(
        "linear",
        "projection head of MoCo v1 or v2, or none: the features are compared",
        choices=encoders.HEADS,
    )
    projection_dim: int | None = setting(
        None,
        "length of a projection, C; by default 128, and without a head that of "
        "the features",
        COUNT,
    )
    bn_splits: int | None = setting(
        8,
        "groups of a batch, that of all devices, that batch norm treats apart; "
        "divided by the devices, at least one each",
        COUNT,
    )
    channels: int | None = setting(
        None,
        "of the images: 1 for gray, 3 for RGB, into which they are converted; "
        "by default those that they have",
        COUNT,
    )
    value_range: str | None = setting(
        None,
        "the darkest and the brightest value of the pixels, such as 0,4095; by "
        "default those of their type",
    )
    normalize: str | None = setting(
        None,
        "mean and deviation of the channels, where the range is 0 to 1, such "
        "as 0.3/0.2; auto measures them; by default CIFAR-10's or ImageNet's "
        "for RGB of 8 bits, and measured for others",
    )
    augmentation: str | None = setting(
        "cifar",
        "kind of random views",
        choices=("cifar", "moco_v1", "moco_v2", "gray", "multichannel"),
    )
    turns: bool = setting(
        False,
        "turn views by right angles, for images without an up, with the "
        "augmentations gray and multichannel",
    )
    view_size: str | int | None = setting(
        None,
        "side of the views that are trained on, in pixels, or height and "
        "width; by default that of the images. Smaller views take less time",
    )
    min_area: float = setting(
        0.08,
        "smallest part of an image that a view shows",
        arguments.POSITIVE_FRACTION,
    )
    batch_size: int | None = setting(
        512, "images in a step, of all devices", COUNT
    )
    epochs: int | None = setting(
        200,
        "passes over the training images, or stretches of --steps_per_epoch",
        COUNT,
    )
    steps_per_epoch: int | None = setting(
        None,
        "steps that count as an epoch; by default those of all images",
        COUNT,
    )
    minutes: float | None = setting(
        None,
        "how long the program may take, in place of --epochs: it measures the "
        "speed first, and chooses the epochs that there is time for, and their "
        "steps; 0, after a file of flags that has it, lets --epochs count",
        arguments.NOT_NEGATIVE,
    )
    queue_size: int | None = setting(4096, "keys in the queue, K", COUNT)
    momentum: float | None = setting(
        0.99, "of the key encoder, m, in [0, 1]", arguments.FRACTION
    )
    temperature: float = setting(
        0.1, "divides the similarities, T", arguments.POSITIVE
    )
    symmetric: bool = setting(False, "let both views be query and key in turn")
    learning_rate: float | None = setting(
        0.06,
        "of SGD with momentum 0.9; falls by a cosine, epoch by epoch",
        arguments.POSITIVE,
    )
    l2: float = setting(
        5e-4,
        "weight decay of PyTorch's kind, added to the gradient",
        arguments.NOT_NEGATIVE,
    )
    strategy: str = setting(
        "auto",
        "over which devices a step is spread: one, all GPUs of this host, all "
        "hosts of TF_CONFIG, a TPU, or what fits",
        choices=distribution.NAMES,
    )
    seed: int = setting(0, "of everything random", arguments.SEED)
    precision: str = setting(
        "auto",
        "of the arithmetic: auto is mixed_bfloat16 on GPUs and processors that "
        "have units for it, and float32 elsewhere",
        choices=("auto", *PRECISIONS),
    )
    knn_every: int = setting(
        5, "epochs between kNN evaluations; the first and last always", COUNT
    )
    on_alarm: str = setting(
        "warn",
        "what to do if an alarm finds the run or its images ill, such as a "
        "collapse: print a warning and continue, or end with an error",
        choices=("warn", "stop"),
    )

    def __post_init__(self):
        """Also refuses what does not fit together."""
        super().__post_init__()
        _pixels.parse_range(self.value_range)
        if self.minutes == 0:
            object.__setattr__(self, "minutes", None)
        for name in ("image_size", "view_size"):
            size = getattr(self, name, None)
            if isinstance(size, str):
                turned = self.turns and (
                    name == "view_size" or not self.view_size
                )
                size = _pixels.checked_size(size, turned, name)
                object.__setattr__(self, name, size)
        if self.normalize not in (None, "auto"):
            _pixels.parse_normalization(self.normalize)
        if None in (self.batch_size, self.queue_size):
            return
        keys_of_a_step = self.batch_size * (1 + self.symmetric)
        if keys_of_a_step > self.queue_size:
            raise ValueError(
                "--queue_size must hold the keys of a whole step, or they "
                "would overwrite each other. Received: --queue_size="
                f"{self.queue_size}, {keys_of_a_step} keys a step. Raise it, "
                "or lower --batch_size."
            )
        if self.train_examples and self.train_examples < self.batch_size:
            raise ValueError(
                "--train_examples must fill a batch. Received: "
                f"--train_examples={self.train_examples}, "
                f"--batch_size={self.batch_size}. Raise it, or lower "
                "--batch_size."
            )
