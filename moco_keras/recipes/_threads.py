"""How the programs that train use the processor."""

import os

import tensorflow as tf

from moco_keras.distribution import accelerators


def share_cores():
    """Gives each of two operations a core of its own, where there are two.

    A step of MoCo has two operations to run nearly all the time: those of the
    two encoders, then the gradients of filters and of inputs. On two cores the
    threads that TensorFlow would split each of them over wait for each other.

    Raises:
        RuntimeError: if TensorFlow has computed anything before.
    """
    if os.cpu_count() == 2 and not accelerators.on_gpu():
        tf.config.threading.set_intra_op_parallelism_threads(1)
