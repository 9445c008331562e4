import re

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

import moco_keras
from moco_keras import MomentumUpdate, callbacks, optimizers


@pytest.fixture
def labels():
    return np.arange(16) % 3


def test_knn_is_logged_at_the_first_the_chosen_and_the_last_epoch(
    make_model, images, labels, tmp_path
):
    monitor = callbacks.KNNMonitor((images, labels), (images, labels), 2, k=1)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    model = make_model()
    history = model.fit(
        images, batch_size=8, epochs=5, verbose=0, callbacks=[monitor, log]
    ).history
    # Each image is its own nearest neighbor.
    assert history["knn"] == [1.0] * 4
    rows = (tmp_path / "log.csv").read_text().splitlines()
    column = rows[0].split(",").index("knn")
    values = [row.split(",")[column] for row in rows[1:]]
    assert values == ["1.0", "1.0", "NA", "1.0", "1.0"]


def test_knn_is_that_of_the_features(make_model, images, labels):
    bank, test = (images[:10], labels[:10]), (images[10:], labels[10:])
    model = make_model()
    monitor = callbacks.KNNMonitor(bank, test, k=3)
    monitor.set_model(model)
    result = monitor.evaluate()
    encoders = {
        "knn": moco_keras.backbone(model.query_encoder),
        "knn_projection": model.query_encoder,
    }
    for name, encoder in encoders.items():
        of_bank, of_test = (
            moco_keras.features.extract(encoder, x) for x in (bank[0], test[0])
        )
        expected = reference.knn(of_bank, bank[1], of_test, 3, 0.1)
        assert result[name] == pytest.approx(np.mean(expected == test[1]))
        if name == "knn":
            np.testing.assert_allclose(monitor.features[0], of_bank, rtol=1e-5)
            np.testing.assert_allclose(monitor.features[1], of_test, rtol=1e-5)


def test_features_of_a_model_are_its_backbones(make_model, images):
    model = make_model()
    backbone = moco_keras.backbone(model.query_encoder)
    features = moco_keras.features.extract(model, images)
    lengths = np.linalg.norm(backbone(images), axis=1, keepdims=True)
    np.testing.assert_allclose(features, backbone(images) / lengths, rtol=1e-5)
    of_backbone = moco_keras.features.extract(backbone, images, batch_size=5)
    np.testing.assert_allclose(features, of_backbone, rtol=1e-5)


def test_labels_in_a_column(make_model, images, labels):
    """As in `keras.datasets`."""
    both = images, labels[:, None]
    monitor = callbacks.KNNMonitor(both, both, k=1)
    monitor.set_model(make_model())
    assert monitor.evaluate() == {"knn": 1.0, "knn_projection": 1.0}


def test_k_is_chosen_by_the_smallest_class(images, labels):
    both = images, labels
    assert callbacks.KNNMonitor(both, both).k == 5
    with pytest.warns(UserWarning, match="the 5 images.*Received: k=6") as seen:
        monitor = callbacks.KNNMonitor(both, both, k=6)
    assert monitor.k == 6
    assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k": 17}, "16 images. Received: k=17"),
        ({"k": 0}, "k=0"),
        ({"every": 0}, "every=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"bank": None}, "`bank` must be .images, labels.*NoneType"),
        ({"test": tf.data.Dataset.range(3)}, "`test` must be .images, labels"),
        ({"labels": [3] * 16}, "two classes or more.*labels are 3"),
        ({"labels": [-1] * 16}, "Leave unlabeled .*only_labelled"),
        ({"labels": [0]}, "`bank_labels` must be .*16 images.*shape=.1,"),
        ({"test_labels": [0.5] * 16}, "`test_labels` must be .*float64"),
        ({"test_images": np.zeros((16, 8, 8), "uint8")}, "images in gray"),
    ],
)
def test_bad_arguments_are_refused_before_training(
    kwargs, message, images, labels
):
    kwargs = dict(kwargs)
    images = kwargs.pop("images", images)
    both = {
        "bank": (images, kwargs.pop("labels", labels)),
        "test": (
            kwargs.pop("test_images", images),
            kwargs.pop("test_labels", labels),
        ),
    }
    with pytest.raises(ValueError, match=message):
        callbacks.KNNMonitor(**{**both, **kwargs})


def test_images_of_another_size_are_refused_before_training(
    make_model, images, labels
):
    larger = images.repeat(2, axis=1)
    monitor = callbacks.KNNMonitor((images, labels), (larger, labels))
    with pytest.raises(ValueError, match=r"`test` must.*\(16, 16, 8") as caught:
        monitor.set_model(make_model())
    code = re.search("`(np.*)`", str(caught.value))[1]
    names = {"np": np, "augmentations": moco_keras.augmentations}
    fitting = eval(code, {**names, "images": larger})
    monitor = callbacks.KNNMonitor((images, labels), (fitting, labels))
    monitor.set_model(make_model())
    assert 0 <= monitor.evaluate()["knn"] <= 1


def test_a_label_that_the_bank_lacks_is_never_predicted(
    make_model, images, labels
):
    monitor = callbacks.KNNMonitor((images, labels), (images, labels + 3), k=1)
    monitor.set_model(make_model())
    assert monitor.evaluate() == {"knn": 0.0, "knn_projection": 0.0}


def test_nan_ends_training_and_names_the_step(make_model, images):
    model = make_model(optimizer=optimizers.SGD(1e30))
    with pytest.raises(FloatingPointError, match="nan at step 1 of epoch 2"):
        model.fit(
            images,
            batch_size=16,
            epochs=3,
            verbose=0,
            callbacks=[callbacks.StopOnNaN()],
        )


def test_a_given_momentum_update_is_not_doubled(make_model, images):
    model = make_model(momentum=0.5)
    mine = MomentumUpdate()
    q = model.query_encoder.trainable_variables[0]
    k = model.key_encoder.trainable_variables[0]
    start = q.numpy()
    model.fit(images, batch_size=16, verbose=0, callbacks=[mine])
    np.testing.assert_allclose(k, (start + q.numpy()) / 2, rtol=1e-5, atol=1e-6)
