import numpy as np
import pytest

import moco_keras
from moco_keras import augmentations, callbacks, optimizers
from moco_keras.data import textures


def test_the_same_seed_draws_the_same_images():
    images, labels = textures.draw(200, seed=3)
    again, _ = textures.draw(200, seed=3)
    other, _ = textures.draw(200, seed=4)
    assert images.shape == (200, 32, 32, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, other)
    assert np.bincount(labels).tolist() == [20] * 10
    assert len(np.unique(images.reshape(200, -1), axis=0)) == 200


@pytest.mark.slow
def test_moco_learns_textures(shallow_networks):
    """A short training run raises kNN well above the untrained encoder's."""
    bank, test = textures.draw(2000, seed=0), textures.draw(400, seed=1)
    encoder = moco_keras.build_encoder(
        "resnet18", 32, 32, width=16, stem="imagenet", bn_splits=2
    )
    model = moco_keras.MoCo(
        encoder,
        augmentations.cifar(32, min_area=0.3),
        queue_size=1024,
        momentum=0.98,
        temperature=0.2,
    )
    model.compile(optimizer=optimizers.SGD(0.06))
    monitor = callbacks.KNNMonitor(bank, test, every=100, k=20)
    monitor.set_model(model)
    untrained = monitor.evaluate()["knn"]
    model.fit(bank[0], batch_size=128, epochs=6, verbose=0)
    assert monitor.evaluate()["knn"] > untrained + 0.05
