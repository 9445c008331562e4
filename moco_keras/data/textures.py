"""Textures: a data set that is drawn, so that nothing is downloaded.

Ten kinds of pattern, 32x32 RGB. Angle (half a radian to either side), scale,
phase, lighting, noise and colors vary from image to image, whatever the class.
The colors are two of a palette of three: colors that no other image has would
give each image away, and a contrastive loss would need to learn nothing else.
"""

import numpy as np
import tensorflow_datasets as tfds

from moco_keras import arguments

CLASSES = (
    "stripes",
    "checks",
    "dots",
    "rings",
    "spokes",
    "bricks",
    "zigzag",
    "honeycomb",
    "blobs",
    "streaks",
)
IMAGE_SIZE = 32
_PALETTE = np.array([[44, 72, 128], [216, 76, 64], [238, 202, 96]], "float32")


class Textures(tfds.core.GeneratorBasedBuilder):
    """The textures as a TFDS data set: 20,000 for training, 2,000 for tests."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (TFDS's idiom)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(IMAGE_SIZE, IMAGE_SIZE, 3)
                    ),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(20_000, seed=0),
            "test": self._generate_examples(2_000, seed=1),
        }

    def _generate_examples(self, num_images, seed):
        images, labels = draw(num_images, seed)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


def draw(num_images, seed):
    """Draws textures, the same bytes for the same arguments.

    Args:
        num_images: how many, N; classes take turns.
        seed: integer.

    Returns:
        uint8 (N, 32, 32, 3) and int64 labels (N,), indices into `CLASSES`.
    """
    num_images = arguments.whole(num_images=num_images)
    rng = np.random.default_rng(arguments.whole(arguments.SEED, seed=seed))
    labels = np.arange(num_images) % len(CLASSES)
    images = np.empty((num_images, IMAGE_SIZE, IMAGE_SIZE, 3), "uint8")
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(labels == label)
        field = _PATTERNS[name](_Canvas(rng, len(rows)))
        images[rows] = _paint(field, rng)
    return images, labels


class _Canvas:
    """Coordinates of N pictures, turned, scaled and moved at random.

    `u` and `v`, (N, 32, 32), count periods of the pattern, 8 to 12 pixels each.
    """

    def __init__(self, rng, num_images):
        self.rng = rng
        self.num_images = num_images
        self.pixels_per_period = self.uniform(8.0, 12.0)
        angle = self.uniform(-0.5, 0.5)
        y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype("float32")
        x, y = x - (IMAGE_SIZE - 1) / 2, y - (IMAGE_SIZE - 1) / 2
        cos, sin = np.cos(angle), np.sin(angle)
        period = self.pixels_per_period
        self.u = (cos * x + sin * y) / period + self.uniform(0.0, 1.0)
        self.v = (cos * y - sin * x) / period + self.uniform(0.0, 1.0)
        # The same, around a point near the middle.
        near = 8 / period
        self.du = (cos * x + sin * y) / period + self.uniform(-near, near)
        self.dv = (cos * y - sin * x) / period + self.uniform(-near, near)

    def uniform(self, low, high):
        """Draws (N, 1, 1), a number for each picture."""
        draws = self.rng.uniform(low, high, (self.num_images, 1, 1))
        return draws.astype("float32")

    def sharpen(self, field, slope=1.0):
        """A field in periods, 0 at an edge, as ink from 0 to 1."""
        return np.clip(0.5 + slope * field * self.pixels_per_period, 0.0, 1.0)

    def waves(self, spread, low, high, count=10):
        """A sum of plane waves: random, and smooth.

        Directions lie within `spread` of the canvas's own, and frequencies
        between `low` and `high` waves a period.
        """
        total = 0.0
        for _ in range(count):
            angle = self.uniform(-spread, spread)
            frequency = self.uniform(low, high)
            along = self.u * np.cos(angle) + self.v * np.sin(angle)
            phase = self.uniform(0.0, 1.0)
            total = total + np.cos(2 * np.pi * (frequency * along + phase))
        return total / np.sqrt(count / 2)


def _from_edge(x, share=0.5):
    """Distance into the inked `share` of each unit interval; negative out."""
    return share / 2 - np.abs(x - np.floor(x) - 0.5)


def _stripes(c):
    return c.sharpen(_from_edge(c.u))


def _checks(c):
    a, b = _from_edge(c.u), _from_edge(c.v)
    inside = np.minimum(np.abs(a), np.abs(b)) * np.sign(a) * np.sign(b)
    return c.sharpen(inside)


def _dots(c):
    x, y = c.u - np.floor(c.u) - 0.5, c.v - np.floor(c.v) - 0.5
    return c.sharpen(0.27 - np.hypot(x, y))


def _rings(c):
    return c.sharpen(_from_edge(np.hypot(c.du, c.dv)))


def _spokes(c):
    count = np.floor(c.uniform(4.0, 9.0))
    radius = np.hypot(c.du, c.dv)
    turns = np.arctan2(c.dv, c.du) / (2 * np.pi)
    return c.sharpen(_from_edge(turns * count) * 2 * np.pi * radius / count)


def _bricks(c):
    row = np.floor(c.v * 1.4)
    across = _from_edge(c.v * 1.4, 0.84) / 1.4
    along = _from_edge(c.u * 0.7 + 0.5 * (row % 2), 0.92) / 0.7
    return c.sharpen(np.minimum(across, along))


def _zigzag(c):
    bend = np.abs(c.v * 0.8 - np.floor(c.v * 0.8) - 0.5) * 2.0
    return c.sharpen(_from_edge(c.u + bend, 0.4))


def _honeycomb(c):
    # Distance to the nearest and the second nearest point of a triangular
    # lattice: equal on the walls of the cells.
    height = np.sqrt(3.0).astype("float32")
    distances = []
    for shift in (0.0, 0.5):
        for du in (-1, 0, 1):
            for dv in (-1, 0, 1):
                x = c.u - shift - np.round(c.u - shift) - du
                y = c.v - shift * height
                y = y - height * (np.round(y / height) + dv)
                distances.append(np.hypot(x, y))
    distances = np.partition(np.stack(distances), 1, axis=0)
    return c.sharpen(0.08 - (distances[1] - distances[0]) / 2)


def _blobs(c):
    return c.sharpen(c.waves(np.pi, 0.3, 0.9) + 0.4, slope=0.25)


def _streaks(c):
    return c.sharpen(c.waves(0.2, 0.2, 1.8) - 0.4, slope=0.25)


_PATTERNS = {name: globals()[f"_{name}"] for name in CLASSES}


def _paint(ink, rng):
    """Colors, lights and disturbs ink (N, 32, 32): uint8 (N, 32, 32, 3)."""
    num_images = len(ink)

    def uniform(low, high, *shape):
        draws = rng.uniform(low, high, (num_images, *shape))
        return draws.astype("float32")

    pair = np.argsort(rng.random((num_images, len(_PALETTE))), axis=1)[:, :2]
    pair = np.sort(pair, axis=1)  # the paint is always the lighter one
    paper, paint = _PALETTE[pair[:, 0]], _PALETTE[pair[:, 1]]
    ink = ink[..., None]
    paper, paint = paper[:, None, None], paint[:, None, None]
    images = paper + (paint - paper) * ink
    # A light that falls from one side.
    y, x = np.mgrid[-1 : 1 : IMAGE_SIZE * 1j, -1 : 1 : IMAGE_SIZE * 1j]
    angle = uniform(0, 2 * np.pi, 1, 1)
    slope = uniform(0.0, 0.15, 1, 1)
    light = slope * (np.cos(angle) * x + np.sin(angle) * y)
    light = uniform(0.85, 1.05, 1, 1) + light.astype("float32")
    images = images * light[..., None]
    deviation = uniform(4.0, 8.0, 1, 1, 1)
    images += deviation * rng.standard_normal(images.shape, dtype="float32")
    return np.clip(np.round(images), 0, 255).astype("uint8")
