"""Fixtures for all tests."""

import fcntl
import os
import signal
import subprocess

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Test processes share the GPU.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

from pathlib import Path

import keras
import numpy as np
import pytest
import shallow
import tensorflow as tf

import moco_keras
from moco_keras.distribution import accelerators

# TF32 keeps ten bits, but the tests compare seven digits.
tf.config.experimental.enable_tensor_float_32_execution(False)


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state, and in float32."""
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float32")
    return 1


@pytest.fixture(autouse=True)
def current_folder():
    """Fails a test that leaves another current folder to the next one."""
    before = Path.cwd()
    yield
    assert Path.cwd() == before, "Change folders by `monkeypatch.chdir`."


@pytest.fixture(params=["cpu", "gpu"])
def accelerator(request, monkeypatch):
    """Runs a test twice, with the code paths of a CPU and of a GPU."""
    monkeypatch.setattr(accelerators, "on_gpu", lambda: request.param == "gpu")
    return request.param


@pytest.fixture
def shallow_networks():
    """Makes a ResNet-18 shallow in this process."""
    with shallow.networks():
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    """Sixteen images of noise, uint8 (16, 8, 8, 3)."""
    return rng.integers(0, 256, (16, 8, 8, 3), "uint8")


@pytest.fixture
def make_encoder():
    """Makes tiny encoders for images of 8x8 pixels."""

    def make(splits=1, projection_dim=4):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(6, 3, strides=2)(inputs)
        x = moco_keras.SplitBatchNormalization(splits)(x)
        backbone = keras.Model(inputs, keras.layers.ReLU()(x))
        return moco_keras.build_encoder(backbone, 8, projection_dim)

    return make


@pytest.fixture
def make_model(make_encoder):
    """Makes tiny compiled models for images of 8x8 pixels."""

    def make(splits=1, optimizer=None, ready_views=False, **kwargs):
        augmenter = None  # tracing one takes most of the time
        if not ready_views:
            augmenter = moco_keras.augmentations.crop_and_flip(8, min_area=0.5)
        settings = {"queue_size": 32, "temperature": 0.2, **kwargs}
        model = moco_keras.MoCo(make_encoder(splits), augmenter, **settings)
        model.compile(optimizer=optimizer or moco_keras.optimizers.SGD(0.1))
        return model

    return make


@pytest.fixture
def ctrl_c():
    """Sets the handler of Ctrl-C, which background jobs of a shell ignore."""
    before = signal.getsignal(signal.SIGINT)

    def set_to(handler):
        signal.signal(signal.SIGINT, handler)

    set_to(signal.default_int_handler)
    yield set_to
    set_to(before)


@pytest.fixture(scope="session")
def textures_dir(tmp_path_factory):
    """A folder where TFDS has prepared the textures, once per test run."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # shared by all processes of this run
    folder = base / "tfds"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        moco_keras.data.read("textures", data_dir=folder)
    return folder


@pytest.fixture
def make_disk(tmp_path):
    """Mounts a disk; returns its folder and a function that remounts it."""
    folder = tmp_path / "disk"

    def make(size):
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
            capture_output=True,
        )
        if mounted.returncode:
            pytest.skip(f"a disk cannot be mounted here: {mounted.stderr!r}")
        return folder, remount

    def remount(how="ro"):
        command = ["mount", "-o", f"remount,{how}", folder]
        subprocess.run(command, check=True)

    yield make
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(make_disk):
    """A folder on a disk of 1 MB, and a function that makes it read-only."""
    return make_disk("1m")


def _prepared(name):
    folder = os.environ.get("MOCO_KERAS_DATA_DIR", "")
    if not (Path(folder) / name).is_dir():
        pytest.skip(f"{name} is not prepared in MOCO_KERAS_DATA_DIR={folder}")
    return folder


@pytest.fixture
def cifar10_dir():
    return _prepared("cifar10")


@pytest.fixture
def fashion_dir():
    return _prepared("fashion_mnist")
