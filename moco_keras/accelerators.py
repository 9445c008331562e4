"""The one door to the question what TensorFlow computes on.

Nobody else asks TensorFlow, so that a test can give another answer, and so run
on a CPU what else only a GPU would.
"""

import tensorflow as tf


def on_gpu():
    """Whether TensorFlow computes on GPUs."""
    return bool(tf.config.list_physical_devices("GPU"))


def logical_devices():
    """Names of all GPUs, or of all logical CPUs where there is no GPU."""
    devices = tf.config.list_logical_devices
    return [device.name for device in devices("GPU") or devices("CPU")]
