"""Training knows neither labels nor test images."""

import dataclasses

import numpy as np
import programs
import pytest

from moco_keras import data
from moco_keras.data import textures
from moco_keras.recipes import _data, _pretrain, _settings

pytestmark = pytest.mark.usefixtures("shallow_networks", "no_pictures")
SETTINGS = _settings.Settings(**programs.TINY)


def read(settings):
    images, labels = textures.draw(48, seed=0)
    names = list(textures.CLASSES)
    train, test = (
        data.ImageSet(images[part], labels[part], names, "textures")
        for part in (slice(32), slice(32, None))
    )
    return _data.Images(train, train, test)


def read_permuted(settings):
    images = read(settings)
    rng = np.random.default_rng(0)

    def permuted(image_set):
        labels = rng.permutation(image_set.labels)
        assert (labels != image_set.labels).any()
        return image_set._replace(labels=labels)

    train = permuted(images.train)
    return images._replace(train=train, bank=train, test=permuted(images.test))


def read_other_tests(settings):
    images = read(settings)
    noise = np.random.default_rng(0).integers(
        0, 256, images.test.images.shape, "uint8"
    )
    return images._replace(test=images.test._replace(images=noise))


@pytest.mark.slow
def test_they_change_no_weight(tmp_path):
    """To the bit; the optimizer and the queue are among the weights."""
    runs = []
    for given in (read, read_permuted, read_other_tests):
        folder = str(tmp_path / given.__name__)
        settings = dataclasses.replace(SETTINGS, run_dir=folder)
        runs.append(_pretrain.pretrain(settings, "recipe", given))
    (weights, metrics), *others = map(programs.numbers, runs)
    assert len(weights) > 50
    for other_weights, other_metrics in others:
        assert metrics != other_metrics
        for (path, a), (_, b) in zip(weights, other_weights, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=path)
