import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import replicas
import tensorflow as tf

from moco_keras import distribution

ROOT = Path(__file__).parent.parent


def run(count, folder):
    """Results of a process with so many replicas, by run and name."""
    program = [sys.executable, str(ROOT / "tests/replicas.py")]
    subprocess.run(
        [*program, str(count), str(folder)],
        check=True,
        timeout=600,  # replicas that wait for each other wait forever
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return dict(np.load(folder / "results.npz"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run(1, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return {"folder": folder, **run(2, folder)}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("four"))


def of_run(results, name):
    """The results of a run, in their order: names of weights count up."""
    return [
        (key, value)
        for key, value in results.items()
        if key.startswith(f"{name}/")
    ]


def assert_same(results, expected, name):
    pairs = zip(of_run(results, name), of_run(expected, name), strict=True)
    for (key, value), (_, wanted) in pairs:
        np.testing.assert_allclose(
            value, wanted, rtol=0, atol=1e-5, err_msg=key
        )


@pytest.mark.parametrize("name", ["plain", "symmetric", "v2", "in order"])
@pytest.mark.parametrize("count", ["two", "four"])
def test_replicas_train_as_one_device(one, name, count, request):
    """Losses, weights, key weights, queue, even the views, step by step."""
    assert_same(request.getfixturevalue(count), one, name)


def test_shuffled_batch_norm_is_the_split_one_of_one_device(one, two):
    assert_same(two, one, "batch norm")


def test_replicas_stay_identical(two):
    """The queue too, which 50 batches of 16 wrap around unevenly."""
    same = of_run(two, "same")
    assert any("keys" in key for key, _ in same)
    for key, value in same:
        assert len(value) == 1 and value.all(), key


def test_shuffling_hides_batch_statistics(four):
    assert four["cheat/none"] > 0.9
    assert four["cheat/replicas"] < 0.25  # a quarter of the batch is shared


def test_what_replicas_leave_loads_on_one_device(two):
    images = replicas.make_images(19)
    model = keras.models.load_model(two["folder"] / "model.keras")
    np.testing.assert_allclose(
        model.predict(images, verbose=0), two["predicted"], rtol=0, atol=1e-5
    )
    features = keras.Model(
        model.query_encoder.input,
        model.query_encoder.get_layer("features").output,
    )
    served = tf.saved_model.load(two["folder"] / "encoder")
    embedding = served.signatures["serving_default"](images=tf.constant(images))
    np.testing.assert_allclose(
        embedding["embedding"], features(images), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "name, expected",
    [
        ("indivisible", "batch_size=15, 2 replicas. 16 would do."),
        ("unequal", "drop_remainder=True"),
        ("queue", "queue_size=8, keys of one step=16"),
        ("steps", "steps_per_execution=2"),
        ("compiled", "The optimizer must be made in the scope"),
        ("built", "The model must be made in the scope"),
    ],
)
def test_bad_input_is_refused(two, name, expected):
    assert expected in str(two[f"complaint/{name}"])


def test_strategies_have_names():
    with pytest.raises(ValueError, match="'mirrord'"):
        distribution.strategy("mirrord")
