import os
import shutil
import subprocess
import warnings

import pytest
import tensorflow as tf
from absl import app, flags
from programs import ROOT

from moco_keras import accelerators
from moco_keras.recipes import _program, _settings

H100 = {"device_name": "NVIDIA H100", "compute_capability": (9, 0)}
A100 = {"device_name": "NVIDIA A100", "compute_capability": (8, 0)}
V100 = {"device_name": "Tesla V100", "compute_capability": (7, 0)}


@pytest.fixture
def machine(monkeypatch):
    """A function that makes TensorFlow find GPUs of these details."""

    def with_gpus(*details):
        numbers = {"GPU": list(range(len(details)))}
        for ask in ("get_visible_devices", "list_physical_devices"):
            monkeypatch.setattr(tf.config, ask, numbers.get)
        monkeypatch.setattr(
            tf.config.experimental, "get_device_details", details.__getitem__
        )

    return with_gpus


@pytest.mark.parametrize(
    ("gpus", "count", "expected"),
    [
        ([H100], 1, "NVIDIA H100"),
        ([A100, A100], 2, "2 x NVIDIA A100"),
        ([A100, A100], 1, "NVIDIA A100"),
        ([H100, V100, H100], 3, "2 x NVIDIA H100, Tesla V100"),
        ([{}], 1, "GPU"),  # TensorFlow may know nothing of it
    ],
)
def test_gpus_have_names(machine, gpus, count, expected):
    machine(*gpus)
    assert accelerators.on_gpu()
    assert accelerators.describe(count) == expected


def test_a_processor_has_a_name(machine, monkeypatch, tmp_path):
    machine()
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert not accelerators.on_gpu()
    assert accelerators.describe().endswith(", 6 cores")
    assert accelerators.describe(2).endswith(", 6 cores as 2 devices")
    monkeypatch.setattr(accelerators, "Path", lambda path: tmp_path / "none")
    assert accelerators.describe().startswith("CPU ")


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([], "float32"),
        ([A100], "mixed_bfloat16"),
        ([H100, A100], "mixed_bfloat16"),
        ([H100, V100], "float32"),
        ([{}], "float32"),
    ],
)
def test_precision_fits_all_gpus(machine, gpus, expected):
    machine(*gpus)
    assert accelerators.default_precision() == expected
    assert _settings.Settings().precision == "auto"


@pytest.mark.parametrize(
    ("driver", "gpus", "visible", "warned"),
    [
        (True, [], None, True),
        (True, [], "0", True),
        (True, [], "-1", False),  # on purpose
        (True, [], "", False),
        (True, [H100], None, False),
        (False, [], None, False),
    ],
)
def test_a_gpu_that_is_not_used_is_said(
    machine, monkeypatch, tmp_path, driver, gpus, visible, warned
):
    machine(*gpus)
    if driver:
        (tmp_path / "version").touch()
    monkeypatch.setattr(accelerators, "_DRIVERS", (tmp_path / "version",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    accelerators.warn_of_unused_gpu.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        accelerators.warn_of_unused_gpu()
        accelerators.warn_of_unused_gpu()  # says nothing more
    accelerators.warn_of_unused_gpu.cache_clear()
    assert len(seen) == warned
    for warning in seen:
        assert "tensorflow[and-cuda]==" in str(warning.message)


def test_programs_ask_for_an_unused_gpu(monkeypatch):
    done = []
    monkeypatch.setattr(
        accelerators, "warn_of_unused_gpu", lambda: done.append("asked")
    )

    def run(main, flags_parser):
        main(flags_parser(["program"]))

    monkeypatch.setattr(app, "run", run)
    monkeypatch.setattr(flags, "FLAGS", lambda argv: argv)
    monkeypatch.setattr(_program, "_lasting", lambda stream: stream)
    monkeypatch.setattr(_settings, "define_flags", lambda defaults: None)
    monkeypatch.setattr(_settings, "from_flags", lambda kind: kind())
    _program.run(_settings.Settings(), lambda _: done.append("worked"))
    assert done == ["asked", "worked"]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("driver", ["", "/dev/nvidiactl"])
def test_make_installs_cuda_where_there_is_a_driver(driver, tmp_path):
    for path in accelerators._DRIVERS:  # the same places
        assert f" {path}" in (ROOT / "Makefile").read_text()
    target = tmp_path / "venv" / "installed"
    planned = subprocess.run(
        [
            *("make", "--dry-run", str(target)),
            *(f"VENV={target.parent}", f"NVIDIA_DRIVER={driver}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    cuda = '-r requirements.txt "tensorflow[and-cuda]"' in planned.stdout
    assert cuda == bool(driver)
    assert "-r requirements.txt" in planned.stdout
