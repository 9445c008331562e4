import functools
import json
import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import moco_keras
from moco_keras import (
    arguments,
    augmentations,
    callbacks,
    data,
    optimizers,
    plotting,
    schedules,
)
from moco_keras.data import textures
from moco_keras.evaluation import knn
from moco_keras.losses import fused_info_nce


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_whole_accepts_any_integer_type(number):
    result = arguments.whole(size=number)
    assert result == 3 and type(result) is int


@pytest.mark.parametrize("number", [0, -1, 1.0, "1", None, True, np.float64(3)])
def test_whole_refuses_all_but_positive_integers(number):
    with pytest.raises(ValueError, match="`size` must be a positive integer"):
        arguments.whole(size=number)


def test_bounds_of_a_seed():
    assert arguments.seed(0) == 0
    assert arguments.seed(None) is None
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match=f"from 0 .* seed={wrong}"):
            arguments.seed(wrong)


@pytest.mark.parametrize(
    "number", [2, 2.0, np.float32(2), np.float64(2), np.int8(2), np.array(2.0)]
)
def test_real_accepts_any_number_type(number):
    result = arguments.real(rate=number)
    assert result == 2 and type(result) is float


@pytest.mark.parametrize("number", ["2", None, [2.0], np.zeros(2)])
def test_real_refuses_all_but_numbers(number):
    with pytest.raises(ValueError, match="`rate` must be a number.*rate="):
        arguments.real(rate=number)


def test_pairs():
    result = arguments.pair(scale=np.array([0.5, 1], "float32"))
    assert result == (0.5, 1) and [type(x) for x in result] == [float, float]
    for wrong in (1.0, (1,), (1, 2, 3), "ab", (1, 0.5), (0.5, math.nan)):
        with pytest.raises(ValueError, match="`scale` must be"):
            arguments.pair(scale=wrong)


def to_numpy(value):
    """The value with NumPy's numbers, in tuples, too."""
    if isinstance(value, tuple):
        return tuple(to_numpy(x) for x in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return np.float32(value) if isinstance(value, float) else np.int64(value)


def to_float64(value):
    """The same in float64, which TensorFlow treats as another dtype."""
    value = to_numpy(value)
    if isinstance(value, tuple):
        return tuple(to_float64(x) for x in value)
    return np.float64(value) if isinstance(value, np.float32) else value


# All numeric arguments. Halves and quarters are exact at every precision.
OBJECTS = {
    "RandomResizedCrop": (
        augmentations.RandomResizedCrop,
        {"image_size": 8, "scale": (0.5, 1.0), "ratio": (0.5, 2.0), "seed": 3},
    ),
    "CenterCropAndResize": (
        augmentations.CenterCropAndResize,
        {"image_size": 8},
    ),
    "RandomHorizontalFlip": (
        augmentations.RandomHorizontalFlip,
        {"rate": 0.5, "seed": 0},
    ),
    "RandomGrayscale": (augmentations.RandomGrayscale, {"rate": 0.5}),
    "RandomColorJitter": (
        augmentations.RandomColorJitter,
        dict.fromkeys(
            ("brightness", "contrast", "saturation", "hue", "rate"), 0.25
        ),
    ),
    "RandomGaussianBlur": (
        augmentations.RandomGaussianBlur,
        {"sigma": (0.5, 1.0), "rate": 0.5},
    ),
    "RandomSolarize": (
        augmentations.RandomSolarize,
        {"rate": 0.5, "threshold": 64.0},
    ),
    "moco_v1": (augmentations.moco_v1, {"image_size": 8, "min_area": 0.5}),
    "moco_v2": (augmentations.moco_v2, {"image_size": 8, "min_area": 0.5}),
    "cifar": (augmentations.cifar, {"image_size": 8, "min_area": 0.5}),
    "evaluation": (augmentations.evaluation, {"image_size": 8}),
    "KeyQueue": (moco_keras.KeyQueue, {"size": 7, "dim": 3, "seed": 2}),
    "SplitBatchNormalization": (
        moco_keras.SplitBatchNormalization,
        {"splits": 2, "momentum": 0.75, "epsilon": 0.5},
    ),
    "build_encoder": (
        functools.partial(moco_keras.build_encoder, "resnet18"),
        {"image_size": 8, "projection_dim": 4, "width": 4, "bn_splits": 2},
    ),
    "SGD": (
        optimizers.SGD,
        {"learning_rate": 0.5, "momentum": 0.75, "l2": 0.25},
    ),
    "EpochCosine": (
        schedules.EpochCosine,
        {"learning_rate": 0.5, "steps_per_epoch": 3, "epochs": 4},
    ),
    "step_schedule": (
        schedules.step_schedule,
        {
            "learning_rate": 0.5,
            "steps_per_epoch": 3,
            "milestones": (2, 4),
            "factor": 0.25,
        },
    ),
}


def comparable(config):
    """A config as JSON, without the numbers that Keras appends to names."""
    text = json.dumps(config, sort_keys=True)
    return re.sub(r'_\d+"', '"', text)


@pytest.mark.parametrize("kind", [to_numpy, to_float64])
@pytest.mark.parametrize("name", OBJECTS)
def test_numpy_numbers_build_the_same_objects(name, kind):
    make, numbers = OBJECTS[name]
    plain = make(**numbers)
    ours = make(**{k: kind(value) for k, value in numbers.items()})
    serialize = keras.saving.serialize_keras_object
    assert comparable(serialize(ours)) == comparable(serialize(plain))
    loaded = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(serialize(ours)))
    )
    assert comparable(serialize(loaded)) == comparable(serialize(plain))
    if isinstance(plain, keras.layers.Pipeline):
        images = np.zeros((2, 9, 9, 3), "uint8")
        assert ours(images).shape == (2, 8, 8, 3)


@pytest.mark.parametrize("name", OBJECTS)
def test_impossible_numbers_are_refused_by_name(name):
    """The error names the argument."""
    make, good = OBJECTS[name]
    for argument, value in good.items():
        wrong = [math.nan, math.inf, -math.inf, -1, 2**200]
        if isinstance(value, tuple):
            wrong = [(x, value[1]) for x in wrong]
        for x in wrong:
            with pytest.raises(ValueError, match=f"`{argument}` must be"):
                make(**{**good, argument: x})


@pytest.mark.parametrize("number", [math.nan, math.inf, -1, 2**200])
def test_impossible_numbers_of_a_model_are_refused(number, make_model, images):
    model, labels = make_model(), np.arange(16) % 2
    for name, call in {
        "queue_size": lambda x: make_model(queue_size=x),
        "momentum": lambda x: make_model(momentum=x),
        "temperature": lambda x: make_model(temperature=x),
        "every": lambda x: callbacks.KNNMonitor(*2 * [(images, labels)], x),
        "k": lambda x: callbacks.KNNMonitor(*2 * [(images, labels)], k=x),
        "batch_size": lambda x: moco_keras.features.extract(model, images, x),
        "size": lambda x: moco_keras.KeyQueue(x, 3),
    }.items():
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            call(number)
    with pytest.raises(ValueError, match="`temperature` must be .*posi"):
        knn.check_temperature(number)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [to_numpy, to_float64])
def test_numpy_numbers_in_calls(kind, rng, tmp_path, make_encoder, images):
    """Results are the same as with Python's numbers."""
    n = kind
    q, k, keys = rng.normal(size=(3, 4, 3)).astype("float32")
    queue = moco_keras.KeyQueue(6, 3)

    def fused(k, temperature):
        return fused_info_nce(tf.constant(q), k, queue.keys, temperature)

    for function, (first, second) in (
        (textures.draw, (20, 1)),
        (functools.partial(moco_keras.contrastive_logits, q, k), (keys, 0.25)),
        (fused, (k, 0.25)),
    ):
        ours = function(n(first), n(second))
        expected = function(first, second)
        for x, y in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(x, y)
    bank, labels = rng.normal(size=(20, 3)), np.arange(20) % 4
    assert knn.accuracy(bank, labels, bank, labels, n(1), n(0.5)) == 1
    monitor = callbacks.KNNMonitor(
        (images, labels[:16]), (images, labels[:16]), n(2), n(1), n(0.5)
    )
    chosen = monitor.every, monitor.k, monitor.temperature
    assert chosen == (2, 1, 0.5)
    assert [type(x) for x in chosen] == [int, int, float]
    encoder = make_encoder()
    assert moco_keras.features.extract(encoder, images, n(8)).shape == (16, 4)
    folder = moco_keras.export_encoder(
        encoder,
        tmp_path / "encoder",
        version=n(3),
        training={"metrics": {"knn": n(0.5)}},
    )
    assert folder.name == "3"
    record = json.loads((folder / "encoder.json").read_text())
    assert record["training"] == {"metrics": {"knn": 0.5}}
    assert moco_keras.load_encoder(tmp_path / "encoder", n(3))(images).shape
    for i in range(5):
        Image.new("RGB", (9, 8), color=i).save(tmp_path / f"{i}.png")
    loaded = data.load(tmp_path, examples=n(4), image_size=n(8))
    assert loaded.images.shape == (4, 8, 8, 3)
    stream = data.read(tmp_path, examples=n(4))
    assert stream.load(n(2), image_size=n(8)).images.shape == (2, 8, 8, 3)
    for source in (stream, stream.dataset):
        views = data.two_views(source, augmentations.cifar(8), n(2))
        if source is stream:
            assert type(views.batch_size) is int
        else:
            assert next(iter(views))[0].shape == (2, 8, 8, 3)


@pytest.mark.slow
def test_paths_may_start_with_a_tilde(
    tmp_path, monkeypatch, make_model, images
):
    """No folder named `~` is created."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    model = make_model()
    checkpoint = moco_keras.Checkpoint("~/run")
    fitted = model.fit(images, batch_size=8, callbacks=[checkpoint], verbose=0)
    assert list((home / "run").glob("*.index"))
    plotting.curves(fitted.history, Path("~/curves.png"))
    assert (home / "curves.png").is_file()
    folder = moco_keras.export_encoder(model, "~/encoder")
    assert folder == home / "encoder" / "1"
    assert moco_keras.load_encoder(Path("~/encoder"))(images).shape == (16, 6)
    for name, call in {
        "folder": lambda x: model.fit(
            images,
            batch_size=8,
            callbacks=[moco_keras.Checkpoint(x)],
            verbose=0,
        ),
        "path": functools.partial(plotting.curves, fitted.history),
        "path ": functools.partial(moco_keras.export_encoder, model),
        "path  ": moco_keras.load_encoder,
        "data_dir": lambda x: data.read("textures", data_dir=x),
    }.items():
        for wrong in ("~nobody-here/x", "", 3):
            if name == "data_dir" and not wrong:
                continue  # as if not given
            with pytest.raises(ValueError, match=f"`{name.strip()}` must be"):
                call(wrong)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "call",
    [
        lambda: data.read(".", examples=1.5),
        lambda: data.two_views(None, None, 1.5),
        lambda: textures.draw(1.5, 0),
        lambda: textures.draw(1, -1.5),
        lambda: schedules.EpochCosine(0.1, 1.5, 1),
        lambda: schedules.step_schedule(0.1, 3, [1.5]),
        lambda: augmentations.moco_v2(1.5),
        lambda: augmentations.RandomGrayscale("1.5"),
        lambda: moco_keras.KeyQueue(4, 1.5),
        lambda: optimizers.SGD("1.5"),
        lambda: optimizers.SGD(l2="1.5"),
    ],
)
def test_wrong_numbers_are_refused_at_once(call):
    with pytest.raises(ValueError, match="must be .*1.5"):
        call()
