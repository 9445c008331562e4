"""The only module that asks TensorFlow for its devices.

So a test can give another answer, and run on a CPU what otherwise only a GPU
would run.
"""

import collections
import functools
import os
import platform
import re
import warnings
from pathlib import Path

import tensorflow as tf

# Where there is a GPU with its driver, on Linux, and on Windows' subsystem for
# Linux. The Makefile looks there, too.
_DRIVERS = (
    Path("/dev/nvidiactl"),
    Path("/usr/lib/wsl/lib/libcuda.so.1"),
)

_OFF = ("0", "false")  # of a variable that TensorFlow reads

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def on_gpu():
    """Whether TensorFlow computes on GPUs."""
    return bool(_gpus())


def logical_devices():
    """Names of all GPUs, or of all logical CPUs where there is no GPU."""
    devices = tf.config.list_logical_devices
    return [device.name for device in devices("GPU") or devices("CPU")]


def split_processor(parts):
    """Lets TensorFlow take parts of the processor for so many devices.

    Raises:
        RuntimeError: if TensorFlow has computed anything before.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, parts * [tf.config.LogicalDeviceConfiguration()]
    )


def default_precision():
    """The Keras dtype policy that programs use by default.

    Returns:
        "mixed_bfloat16" where all GPUs have units for it, which those of
        compute capability 8.0 or later do, or where there is no GPU and the
        processor has instructions for it, which TensorFlow uses unless
        TF_ENABLE_ONEDNN_OPTS is 0; "float32" elsewhere.
    """
    if not on_gpu():
        if os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in _OFF:
            return "float32"
        flags = r"^flags\s*:.*\b(amx_bf16|avx512_bf16)\b"
        capable = re.search(flags, _text(_PROC / "cpuinfo"), re.M)
        return "mixed_bfloat16" if capable else "float32"
    capable = [
        details.get("compute_capability", (0, 0)) >= (8, 0)
        for details in map(_details, _gpus())
    ]
    return "mixed_bfloat16" if all(capable) else "float32"


def free_memory():
    """Bytes that a training run may take here, or None where it is not known.

    Of GPUs, those of the fullest. Of a computer, what the system and the
    control groups of the process leave, whichever is less.
    """
    free = _free_of_gpus() if on_gpu() else _free_of_host()
    return min(free, default=None)


def peak_memory():
    """The most bytes that this process has held, or None if it is not known.

    Of GPUs, those of the fullest. Of a computer, libraries are counted, too.
    """
    if on_gpu():
        about = tf.config.experimental.get_memory_info
        return max(about(f"GPU:{i}")["peak"] for i in range(len(_gpus())))
    # Not of `resource`: on Linux it counts what the process was forked from.
    found = re.search(r"^VmHWM:\s*(\d+) kB", _text(_PROC / "self/status"), re.M)
    return 1024 * int(found[1]) if found else None


def _free_of_gpus():
    """What TensorFlow may take of each and does not use yet."""
    try:
        # Of a session's devices alone TensorFlow tells how much it may take;
        # they have the memory that all others in the process have.
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            devices = session.list_devices()
        return [
            device.memory_limit_bytes
            - tf.config.experimental.get_memory_info(f"GPU:{i}")["current"]
            for i, device in enumerate(
                d for d in devices if d.device_type == "GPU"
            )
        ]
    except (tf.errors.OpError, ValueError):
        return []


def _free_of_host():
    """What each limit leaves."""
    about = _text(_PROC / "meminfo")
    found = re.search(r"^MemAvailable:\s*(\d+) kB", about, re.M)
    free = [1024 * int(found[1])] if found else []
    # Lines are number:controllers:path, and "0::path" in version 2.
    for line in _text(_PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUPS / controllers
        place = root / path.strip("/")
        # A container may see its own group as the root.
        groups = [p for p in (place, *place.parents) if root in p.parents]
        free += [
            left
            for group in (root, *groups)
            if (left := _free_of_group(group, controllers)) is not None
        ]
    return free


def _free_of_group(group, controllers):
    names = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if controllers
        else ("memory.max", "memory.current")
    )
    limit, used = (_text(group / name).strip() for name in names)
    if not limit.isdigit() or not used.isdigit():  # "max", or no such group
        return None
    # Files that are cached can be dropped.
    about = _text(group / "memory.stat")
    lines = re.findall(r"^(total_)?(?:in)?active_file (\d+)", about, re.M)
    cached = collections.Counter()
    for of_all, size in lines:  # version 1 has both, of all groups within, too
        cached[of_all] += int(size)
    return int(limit) - int(used) + max(cached.values(), default=0)


def _text(path):
    try:
        return path.read_text()
    except OSError:  # not on Linux
        return ""


def describe(count=1):
    """Names the first `count` GPUs, or the processor, for people."""
    names = [_details(gpu).get("device_name", "GPU") for gpu in _gpus()]
    if names:
        counts = collections.Counter(names[:count])
        return ", ".join(
            name if times == 1 else f"{times} x {name}"
            for name, times in counts.items()
        )
    parts = f" as {count} devices" if count > 1 else ""
    return f"{_processor()}, {os.cpu_count()} cores{parts}"


@functools.cache
def warn_of_unused_gpu():
    """Warns, once, where a GPU seems to be there and TensorFlow finds none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    found = tf.config.list_physical_devices("GPU")
    if hidden or found or not any(path.exists() for path in _DRIVERS):
        return
    warnings.warn(
        "This machine has an NVIDIA driver, but TensorFlow finds no GPU and "
        "computes on the processor, many times slower. Most often CUDA's "
        f"libraries are missing: pip install 'tensorflow[and-cuda]=="
        f"{tf.__version__}'. To use the processor on purpose, set "
        "CUDA_VISIBLE_DEVICES=-1.",
        stacklevel=2,
    )


def _gpus():
    return tf.config.get_visible_devices("GPU")


def _details(gpu):
    return tf.config.experimental.get_device_details(gpu)


def _processor():
    about = _text(_PROC / "cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", about, re.M)
    return names[0] if names else f"CPU {platform.machine()}"
