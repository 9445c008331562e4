import contextlib
import os
import shutil
import subprocess
import types
import warnings

import pytest
import tensorflow as tf
from absl import app, flags
from programs import ROOT

from moco_keras.distribution import accelerators
from moco_keras.recipes import _cli, _flags, _settings

H100 = {"device_name": "NVIDIA H100", "compute_capability": (9, 0)}
A100 = {"device_name": "NVIDIA A100", "compute_capability": (8, 0)}
V100 = {"device_name": "Tesla V100", "compute_capability": (7, 0)}


@pytest.fixture
def machine(monkeypatch):
    """Returns a function that makes TensorFlow find GPUs."""

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
        ([{}], 1, "GPU"),  # TensorFlow may know no details
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
    monkeypatch.setattr(accelerators, "_PROC", tmp_path)  # as if not on Linux
    assert accelerators.describe().startswith("CPU ")


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
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
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_bf16 amx_int8", "mixed_bfloat16"),
        ("fpu amx_bf16", "mixed_bfloat16"),
        ("fpu avx2 avx512f amx_int8", "float32"),
        ("", "float32"),
    ],
)
def test_precision_fits_a_processor(
    flags, expected, machine, monkeypatch, tmp_path
):
    machine()
    cores = [f"processor\t: {i}\nflags\t\t: {flags}\n\n" for i in range(2)]
    write(tmp_path, cpuinfo="".join(cores))
    monkeypatch.setattr(accelerators, "_PROC", tmp_path)
    assert accelerators.default_precision() == expected
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert accelerators.default_precision() == "float32"


def test_precision_of_an_unknown_processor(machine, monkeypatch, tmp_path):
    machine()
    monkeypatch.setattr(accelerators, "_PROC", tmp_path)  # as if not on Linux
    assert accelerators.default_precision() == "float32"


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def linux(machine, monkeypatch, tmp_path):
    """/proc and /sys/fs/cgroup of a machine without GPUs, 8,000 KiB free."""
    machine()
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    monkeypatch.setattr(accelerators, "_PROC", proc)
    monkeypatch.setattr(accelerators, "_CGROUPS", groups)
    write(proc, meminfo="MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    return proc, groups


def test_free_memory_is_that_of_the_system(linux, monkeypatch, tmp_path):
    assert accelerators.free_memory() == 8000 * 1024
    monkeypatch.setattr(accelerators, "_PROC", tmp_path / "none")
    assert accelerators.free_memory() is None


@pytest.mark.parametrize("seen_as", ["/a/b", "/"])  # in a container, "/"
def test_free_memory_is_within_a_control_group(linux, seen_as):
    """The group or one of its parents may set the limit (version 2)."""
    proc, groups = linux
    write(proc / "self", cgroup="0::/a/b\n")
    place = groups / seen_as.strip("/")
    write(place, memory__max="max", memory__current="9")
    assert accelerators.free_memory() == 8000 * 1024
    limits = {"memory__max": "5000\n", "memory__current": "3000\n"}
    write(place.parent if seen_as == "/a/b" else place, **limits)
    assert accelerators.free_memory() == 2000
    write(place, **limits, memory__stat="inactive_file 500\nactive_file 200\n")
    expected = 2000 if seen_as == "/a/b" else 2700
    assert accelerators.free_memory() == expected


def test_free_memory_is_within_a_control_group_of_version_1(linux):
    proc, groups = linux
    write(proc / "self", cgroup="5:devices:/x\n4:memory:/a\n0::/\n")
    files = {"memory__limit_in_bytes": "5000", "memory__usage_in_bytes": "4000"}
    stat = (
        "inactive_file 1\nactive_file 2\n"
        "total_inactive_file 100\ntotal_active_file 200\n"
    )
    write(groups / "memory/a", **files, memory__stat=stat)
    write(groups / "memory", memory__limit_in_bytes=str(2**63 - 4096))
    assert accelerators.free_memory() == 1300


def test_free_memory_of_gpus_is_that_of_the_fullest(machine, monkeypatch):
    """Within TensorFlow's limit, because others may hold the rest."""
    machine(A100, A100)
    devices = [
        types.SimpleNamespace(device_type=kind, memory_limit_bytes=limit)
        for kind, limit in (("CPU", 10), ("GPU", 800), ("GPU", 700))
    ]
    session = types.SimpleNamespace(list_devices=lambda: devices)
    monkeypatch.setattr(
        tf.compat.v1, "Session", lambda graph: contextlib.nullcontext(session)
    )
    used = {"GPU:0": {"current": 300}, "GPU:1": {"current": 50}}
    monkeypatch.setattr(
        tf.config.experimental, "get_memory_info", used.__getitem__
    )
    assert accelerators.free_memory() == 500
    devices.clear()
    assert accelerators.free_memory() is None


def test_the_peak_memory_of_gpus_is_that_of_the_fullest(machine, monkeypatch):
    machine(A100, A100)
    held = {"GPU:0": {"peak": 300}, "GPU:1": {"peak": 500}}
    monkeypatch.setattr(
        tf.config.experimental, "get_memory_info", held.__getitem__
    )
    assert accelerators.peak_memory() == 500


def test_the_peak_memory_of_a_process(machine, monkeypatch, tmp_path):
    machine()
    now = accelerators.peak_memory()
    assert 1e8 < now < 1e11
    monkeypatch.setattr(accelerators, "_PROC", tmp_path)
    status = "VmPeak:\t  900 kB\nVmHWM:\t   70 kB\nVmRSS:\t   60 kB\n"
    write(tmp_path / "self", status=status)
    assert accelerators.peak_memory() == 70 * 1024


def test_the_peak_memory_may_be_unknown(machine, monkeypatch, tmp_path):
    machine()
    monkeypatch.setattr(accelerators, "_PROC", tmp_path)  # as if not on Linux
    assert accelerators.peak_memory() is None


def test_a_session_knows_the_memory_limits_of_its_devices():
    """It is asked about GPUs; a CPU has a limit, too."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        (device, *_) = session.list_devices()
    assert device.device_type == "CPU" and device.memory_limit_bytes > 0


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
def test_an_unused_gpu_causes_a_warning(
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
        accelerators.warn_of_unused_gpu()  # does not warn again
    accelerators.warn_of_unused_gpu.cache_clear()
    assert len(seen) == warned
    for warning in seen:
        assert "tensorflow[and-cuda]==" in str(warning.message)


def test_programs_warn_of_an_unused_gpu(monkeypatch):
    done = []
    monkeypatch.setattr(
        accelerators, "warn_of_unused_gpu", lambda: done.append("asked")
    )

    def run(main, flags_parser):
        main(flags_parser(["program"]))

    monkeypatch.setattr(app, "run", run)
    monkeypatch.setattr(flags, "FLAGS", lambda argv: argv)
    monkeypatch.setattr(_cli, "_lasting", lambda stream: stream)
    monkeypatch.setattr(_flags, "define", lambda defaults: None)
    monkeypatch.setattr(_flags, "read", lambda kind: kind())
    _cli.run(_settings.Settings(), lambda _: done.append("worked"))
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
