"""The benchmark's workloads in moco_keras, as a process that repeats one."""

import numpy as np
import tensorflow as tf

from moco_keras.evaluation import knn as classifier
from moco_keras.key_queue import KeyQueue
from moco_keras.losses import fused_info_nce
from moco_keras.momentum import MomentumUpdate
from moco_keras.recipes.benchmark import (
    input_workloads,
    serving_workloads,
    timing,
    training_workloads,
)


def momentum_update(s):
    """Moves of the key encoder."""
    update = MomentumUpdate()
    model = training_workloads.build_moco(s)
    model.optimizer.build(model.trainable_variables)
    update.set_model(model)
    update.on_train_begin()

    def run():
        for i in range(s["steps"]):
            update.on_train_batch_end(i)

    return run, 0


def queue(s):
    """The loss against the queue, its gradient, and the queue's advance."""
    keys = KeyQueue(s["queue_size"], 128)
    q, k = tf.math.l2_normalize(
        tf.random.normal((2, s["batch_size"], 128)), axis=2
    )

    @tf.function
    def advance():
        with tf.GradientTape() as tape:
            tape.watch(q)
            losses, _ = fused_info_nce(q, k, keys.keys, 0.1)
            loss = tf.reduce_mean(losses)
        gradient = tape.gradient(loss, q)
        keys.enqueue(k)
        return gradient

    def run():
        for _ in range(s["steps"]):
            advance()

    return run, s["steps"] * s["batch_size"]


def knn(s):
    """Classification of features by their neighbours."""
    rng = np.random.default_rng(0)
    bank, queries = (
        rng.normal(size=(n, 512)).astype("float32")
        for n in (s["bank"], s["queries"])
    )
    bank, queries = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)
    )
    labels = rng.integers(0, 10, s["bank"])

    def run():
        classifier.predict(bank, labels, queries)

    return run, s["queries"]


if __name__ == "__main__":
    works = (
        training_workloads.step,
        training_workloads.supervised,
        input_workloads.augment_32,
        input_workloads.augment_224,
        input_workloads.input_pipeline,
        input_workloads.read_files,
        training_workloads.end_to_end,
        training_workloads.saved,
        training_workloads.replicas,
        serving_workloads.serve_encoded,
        serving_workloads.decode_and_encode,
        serving_workloads.serve_images,
        serving_workloads.encode_images,
        serving_workloads.load_export,
        momentum_update,
        queue,
        knn,
    )
    timing.time_on_request(
        works,
        ("keras", "tensorflow"),
        tf.profiler.experimental.Profile,
    )
