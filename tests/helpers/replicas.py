"""Trains small models under a strategy, in a separate process.

    python tests/helpers/replicas.py WHAT REPLICAS FOLDER

WHAT is the name of a function below that returns the results to save. Each
process makes one strategy: TensorFlow's collectives on a CPU break with a
second one. If TF_CONFIG is set, the replicas are those of two workers.
"""

import contextlib
import json
import os
import socket
import sys
import time
import warnings
from pathlib import Path

import keras
import kernels
import moco_v3
import numpy as np
import shallow
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy

from moco_keras import (
    MoCo,
    SplitBatchNormalization,
    augmentations,
    build_classifier,
    build_encoder,
    distribution,
    export_encoder,
    optimizers,
    random,
)
from moco_keras.callbacks import CheckFrozen, HealthMonitor
from moco_keras.distribution import accelerators
from moco_keras.evaluation import features
from moco_keras.training.checkpoint import Checkpoint

BATCH, STEPS = 16, 10
PIPELINES = ("cifar", "moco_v1", "moco_v2")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# By name: splits of batch norm on one device (0: no batch norm, "sync": shared
# by all replicas), settings, and numbers of replicas to try.
RUNS = {
    "plain": (0, {}, (1, 2, "workers")),
    "symmetric v2": (
        0,
        {"symmetric": True, "head": "mlp", "ready_views": True},
        (1, 2, 4, "workers"),
    ),
    "in order": (0, {"shuffle": "none", "ready_views": True}, (1, 2)),
    # Two replicas have one split each.
    "batch norm": (2, {"ready_views": True}, (1, 2)),
    "sync": ("sync", {"ready_views": True}, (1, 2)),
}


def make_model(
    splits=0,
    head="linear",
    queue_size=37,
    ready_views=False,
    frozen=False,
    **settings,
):
    """A compiled model for images of 8 pixels, or for ready views of them."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, trainable=not frozen)(x)
    if splits == "sync":
        x = SplitBatchNormalization(synchronized=True)(x)
    elif splits:
        x = SplitBatchNormalization(splits)(x)
    backbone = keras.Model(inputs, keras.layers.ReLU()(x))
    model = MoCo(
        build_encoder(backbone, 8, 4, head=head),
        # Tracing an augmenter takes most of the time.
        None if ready_views else augmentations.crop_and_flip(8, min_area=0.5),
        queue_size=queue_size,
        **{"temperature": 0.2, "momentum": 0.9, **settings},
    )
    model.compile(optimizer=optimizers.SGD(0.1))
    return model


def traced_step(
    pipeline, precision, jit_compile=False, norm="batch", images=None
):
    """The concrete function of a training step of all replicas.

    Args:
        pipeline, precision, jit_compile: of the model; a pipeline of None has
            ready views.
        norm: of its ResNet-18, see `build_encoder`.
        images: `tf.TensorSpec`, in place of a batch of `BATCH`.
    """
    strategy = tf.distribute.get_strategy()
    keras.config.set_dtype_policy(precision)
    model = MoCo(
        build_encoder("resnet18", 8, stem="imagenet", width=2, norm=norm),
        pipeline and getattr(augmentations, pipeline)(8),
        queue_size=37,
    )
    model.compile(optimizer=optimizers.SGD(0.1))
    model.optimizer.build(model.trainable_variables)
    step = tf.function(
        lambda images: strategy.run(model.train_step, (images,)),
        jit_compile=jit_compile,
    )
    if images is None:
        data = make_images(BATCH)
        data = data if pipeline else ready_views(data)
        batches = tf.data.Dataset.from_tensors(data)
        batches = strategy.experimental_distribute_dataset(batches)
        images = next(iter(batches))
    return step.get_concrete_function(images)


def make_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), "uint8")


def ready_views(images):
    """Two views of each image: itself, and with red and blue swapped."""
    return images.astype("float32"), images[..., ::-1, :].astype("float32")


def train(model, steps=STEPS):
    """Trains on images in order; returns the results to compare, by name."""
    losses = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(dict(logs))
    )
    images = make_images(steps * BATCH)
    model.fit(
        images if model.augmenter else ready_views(images),
        batch_size=BATCH,
        shuffle=False,
        callbacks=[watch],
        verbose=0,
    )
    results = {
        name: [logs[name] for logs in losses]
        for name in ("loss", "contrastive_accuracy")
    }
    for i, variable in enumerate(model.variables):
        # Not its path, since names count up in a process.
        results[f"{i} {variable.name}"] = variable.numpy()
    return results


def copies(variable):
    """The values of a variable that the replicas hold."""
    return [copy.numpy() for copy in getattr(variable.value, "values", ())]


def are_same(model):
    """Whether replicas agree after 50 steps in all, by variable."""
    train(model, steps=50 - STEPS)
    results = {}
    for variable in model.variables:
        first, *others = copies(variable)
        same = [np.array_equal(first, other) for other in others]
        results[f"same/{variable.path}"] = same
    return results


def logical_devices(count):
    """Splits a GPU, or the processor, into logical devices."""
    visible = tf.config.get_visible_devices
    gpu_or_cpu = (visible("GPU") or visible("CPU"))[0]
    mebibytes = 1024 if visible("GPU") else None  # a GPU requires a limit
    tf.config.set_logical_device_configuration(
        gpu_or_cpu,
        [tf.config.LogicalDeviceConfiguration(mebibytes) for _ in range(count)],
    )


def free_ports(count):
    """Free ports."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("", 0)))
            for _ in range(count)
        ]
        return [server.getsockname()[1] for server in servers]


def tf_config(ports, index=0, kind="worker", **jobs):
    """The TF_CONFIG of a worker on this host."""
    workers = [f"localhost:{port}" for port in ports]
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": {"worker": workers, **jobs}, "task": task})


def two_cpus_a_worker():
    """Gives a worker two replicas, as if it had two GPUs.

    TensorFlow uses one logical CPU of a worker, and has no setting for more.
    """
    logical_devices(2)

    def devices(self, resolver, worker):
        return [f"{worker}/device:CPU:{i}" for i in range(2)], "CPU"

    extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
    extended._initialize_local_devices = devices


class _BatchMean(keras.layers.Layer):
    """Returns the mean of the batch for every image, and nothing of its own.

    It is all that an image learns about others through batch norm. With eight
    numbers, hundreds of negatives include some that are similar.
    """

    def call(self, images):
        means = keras.ops.mean(images, axis=(2, 3))  # (N, 8)
        return 0 * means + keras.ops.mean(means, axis=0)


def cheat(shuffle):
    """Contrastive accuracy of an encoder that knows only its batch's mean."""
    images = np.random.default_rng(0).normal(size=(60 * BATCH, 8, 8, 3))
    inputs = keras.Input((8, 8, 3))
    encoder = keras.Model(inputs, _BatchMean()(inputs))
    model = MoCo(encoder, queue_size=512, shuffle=shuffle)
    model.compile(optimizer=optimizers.SGD(0.0))
    history = model.fit(
        (images.astype("float32"),) * 2,
        batch_size=BATCH,
        epochs=2,  # the first fills the queue
        verbose=0,
    )
    return history.history["contrastive_accuracy"][1]


def drawn(strategy, jit_compile=False):
    """What the layers draw for a batch, and a shuffling order, by name."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        layers = augmentations.moco_v2(8).layers
        layers.append(augmentations.RandomSolarize())
        seed = keras.random.SeedGenerator(3)

    def draw():
        own = BATCH // distribution.num_replicas()
        images = tf.zeros((own, 20, 24, 3))  # only their size matters
        draws = {"order": random.permutation(seed.next(), BATCH)}
        for layer in layers:
            values = layer.get_random_transformation_batch(own, images=images)
            if not isinstance(values, dict):
                values = {"chosen": values}
            for name, value in values.items():
                value = distribution.all_gather(tf.cast(value, "float32"))
                draws[f"{type(layer).__name__}/{name}"] = value
        return draws

    draw_together = tf.function(
        lambda: strategy.run(draw), jit_compile=jit_compile
    )
    results = {}
    for step in range(3):
        for name, values in draw_together().items():
            values = strategy.experimental_local_results(values)
            for value in values:  # every replica's
                np.testing.assert_array_equal(value, values[0])
            results[f"drawn/{step}/{name}"] = values[0].numpy()
    return results


def gathered(strategy):
    """Whether a gather preserves every bit, by type."""
    bits = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 8), "uint8")
    results = {}
    for dtype in map(tf.as_dtype, ("uint8", "bfloat16", "float16", "float32")):
        own_bits = bits[..., : dtype.size]
        whole = own_bits if dtype.size == 1 else tf.bitcast(own_bits, dtype)
        whole = tf.reshape(whole, (6, 3, 5))

        def gather(x):
            return distribution.all_gather(distribution.replica_slice(x))

        # Outside of a `tf.function`, TensorFlow gathers in another way.
        ways = {"": tf.function(gather), "/eager": gather}
        if dtype == "uint8":
            unknown = tf.TensorSpec((6, None, None), dtype)
            ways["/unknown"] = tf.function(gather, input_signature=[unknown])
        for way, run in ways.items():
            values = strategy.run(run, (whole,))
            results[f"gathered/{dtype.name}{way}"] = [
                np.array_equal(
                    tf.reshape(tf.bitcast(value, "uint8"), own_bits.shape),
                    own_bits,
                )
                for value in strategy.experimental_local_results(values)
            ]
    return results


@keras.saving.register_keras_serializable()
class _Overflow(keras.layers.Layer):
    """Returns its inputs; gradients of bright images overflow."""

    def call(self, x, images):
        bright = tf.reduce_max(images, axis=(1, 2, 3), keepdims=True) > 500
        infinite = tf.constant(float("inf"), x.dtype)

        @tf.custom_gradient
        def through(x):
            return tf.identity(x), lambda dy: tf.where(bright, infinite, dy)

        return through(x)


def overflow(strategy):
    """Weights and loss scale after each step, in mixed_float16.

    The gradients of the last replica overflow in the second step.
    """
    keras.config.set_dtype_policy("mixed_float16")
    keras.utils.set_random_seed(1)
    with strategy.scope():
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(6, 3, strides=2, activation="relu")(inputs)
        backbone = keras.Model(inputs, _Overflow()(x, inputs))
        model = MoCo(build_encoder(backbone, 8, 4), queue_size=64)
        model.compile(
            keras.optimizers.LossScaleOptimizer(
                optimizers.SGD(0.1), initial_scale=2.0**10
            )
        )
    views = np.stack(ready_views(make_images(12 * BATCH)))
    views[:, 2 * BATCH - 1] = 60_000  # the second step's last image
    seen = {"weights": [], "scale": [], "loss": []}

    def note(batch, logs):
        weights = [v.numpy().ravel() for v in model.trainable_variables]
        seen["weights"].append(np.concatenate(weights))
        scale = keras.ops.convert_to_numpy(model.optimizer.dynamic_scale)
        seen["scale"].append(scale)
        seen["loss"].append(logs["loss"])

    watch = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    model.fit(
        tuple(views),
        batch_size=BATCH,
        shuffle=False,
        callbacks=[watch],
        verbose=0,
    )
    keras.config.set_dtype_policy("float32")
    return {f"overflow/{name}": values for name, values in seen.items()}


def classified(strategy):
    """How a linear classifier is trained, and what finds that more changed."""
    labels = np.arange(4 * BATCH) % 3
    with strategy.scope():
        pretrained = make_model("sync")
        model = build_classifier(pretrained, 3, trainable="head")
        # As if built by hand: in training mode, one layer is not frozen.
        leaky = build_classifier(pretrained, 3, trainable="head")
        leaky = keras.Model(leaky.inputs, leaky.outputs)
        norm = leaky.get_layer(index=2).layers[2]
        norm.trainable = True
        for each in (model, leaky):
            each.compile(
                optimizers.SGD(0.1, multipliers={"logits": 10}),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
    model.layers[-1].kernel.assign(np.linspace(-1, 1, 18).reshape(6, 3))

    def fit(model):
        return model.fit(
            make_images(4 * BATCH),
            labels,
            batch_size=BATCH,
            epochs=2,
            shuffle=False,
            callbacks=[CheckFrozen()],
            verbose=0,
        )

    results = {
        "classifier/losses": fit(model).history["loss"],
        "classifier/kernel": model.layers[-1].kernel.numpy(),
        "classifier/leak": norm.moving_mean.path,
    }
    if strategy.num_replicas_in_sync == 2:  # test_check_frozen.py has one
        try:
            fit(leaky)
            refusal = ""
        except ValueError as error:
            refusal = str(error)
        results["classifier/refusal"] = refusal
    return results


def of_moco_v3(strategy):
    """Losses and weights of another method, with keys of all replicas."""
    with strategy.scope():
        predictor = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
        model = moco_v3.MoCoV3(make_model().query_encoder, predictor)
        for weight in predictor.weights:
            weight.assign(np.random.default_rng(3).normal(size=weight.shape))
        model.compile(optimizer=optimizers.SGD(0.1))
    return {f"moco v3/{k}": v for k, v in train(model, steps=3).items()}


def not_compiled(strategy, folder):
    """What `jit_compile=True` does if a strategy cannot compile steps."""
    alone = make_model(ready_views=True)
    alone.compile(optimizer=optimizers.SGD(0.1), jit_compile=True)
    assert alone.jit_compile
    alone.save(folder / "alone.keras")
    with strategy.scope():
        loaded = keras.models.load_model(folder / "alone.keras")
        told = make_model(ready_views=True)
        with warnings.catch_warnings(record=True) as warned:
            told.compile(optimizer=optimizers.SGD(0.1), jit_compile=True)
    results = {"jit_compile/warning": [str(w.message) for w in warned]}
    for name, model in {"loaded": loaded, "told": told}.items():
        views = ready_views(make_images(BATCH))
        history = model.fit(views, batch_size=BATCH, verbose=0)
        results[f"jit_compile/{name}"] = model.jit_compile
        results[f"jit_compile/{name}/loss"] = history.history["loss"]
    return results


def parameters(encoder):
    """The values of all parameters, frozen or not, found by their names."""
    return [
        w.numpy()
        for w in encoder.weights
        if w.name in ("kernel", "bias", "gamma", "beta")
    ]


class Follower(keras.callbacks.Callback):
    """Recomputes equation 2 after every step, in NumPy.

    Args:
        momentum: function from the number of updates, this one included, to m.
        accumulated: steps per update of the optimizer.

    Attributes:
        error: the largest difference from the key encoder.
        moved: how far the key encoder moved in all.
        steps: number of steps seen.
    """

    def __init__(self, momentum=lambda updates: 0.9, accumulated=1):
        super().__init__()
        self.momentum, self.accumulated = momentum, accumulated
        self.steps, self.error, self.moved = 0, 0.0, 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self.before = parameters(self.model.key_encoder)

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        updates, rest = divmod(self.steps, self.accumulated)
        m = 1.0 if rest else self.momentum(updates)
        queries = parameters(self.model.query_encoder)
        keys = parameters(self.model.key_encoder)
        for old, q, new in zip(self.before, queries, keys, strict=True):
            expected = m * old + (1 - m) * q
            self.error = max(self.error, np.abs(new - expected).max())
            self.moved += np.abs(new - old).sum()

    def train_on_batch(self, model, views):
        """Trains on a single batch, and does the same."""
        self.set_model(model)
        self.on_train_batch_begin(0)
        model.train_on_batch(views)
        self.on_train_batch_end(0)


def _first_layer(model):
    return model.query_encoder.layers[2].layers[1]  # of the backbone


def _fit_followed(model, follower=None, callbacks=(), steps=3):
    follower = follower or Follower()
    model.fit(
        ready_views(make_images(steps * BATCH)),
        batch_size=BATCH,
        callbacks=[*callbacks, follower],
        verbose=0,
    )
    return follower


def _freeze_and_thaw(make):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.2, 8, 1.0)
    model = make(momentum=schedule)

    def m(updates):
        return 0.2 + 0.8 * min(updates, 8) / 8

    for trainable in (True, False, True):
        _first_layer(model).trainable = trainable
        # Its schedule restarts with the optimizer, as the learning rate's does.
        model.compile(optimizer=optimizers.SGD(0.1))
        before = parameters(model.query_encoder)[0]
        follower = _fit_followed(model, Follower(m))
        yield _fit_followed(model, follower)
        moved = parameters(model.query_encoder)[0] - before
        assert np.any(moved) == trainable


def _begin_frozen(make):
    model = make(frozen=True)
    assert not _first_layer(model).trainable
    yield _fit_followed(model)
    _first_layer(model).trainable = True
    model.compile(optimizer=optimizers.SGD(0.1))
    yield _fit_followed(model)


def _set_momentum(make):
    model = make()
    values = [0.5, 0.0, 0.75, 1.0, 0.25]

    def set_next(batch, logs):
        model.momentum = values[batch]

    set_it = keras.callbacks.LambdaCallback(on_train_batch_begin=set_next)
    follower = Follower(lambda updates: values[updates - 1])
    yield _fit_followed(model, follower, [set_it], steps=len(values))


def _single_batches(make):
    model, views = make(), ready_views(make_images(BATCH))
    follower = Follower()
    follower.train_on_batch(model, views)
    follower.train_on_batch(model, views)
    _fit_followed(model, follower)
    follower.train_on_batch(model, views)
    assert int(keras.ops.convert_to_numpy(model.steps)) == follower.steps == 6
    pointer = keras.ops.convert_to_numpy(model.queue.pointer)
    assert pointer == 6 * BATCH % 37
    yield follower


def _accumulation(make):
    model = make()
    optimizer = optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model.compile(optimizer=optimizer)
    follower = _fit_followed(model, Follower(accumulated=2))
    follower.train_on_batch(model, ready_views(make_images(BATCH)))
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 2
    yield _fit_followed(model, follower)


SEQUENCES = {
    "schedule, freeze and thaw": _freeze_and_thaw,
    "begin frozen": _begin_frozen,
    "set momentum": _set_momentum,
    "single batches": _single_batches,
    "accumulation": _accumulation,
}


def followed(strategy, name):
    """What the followers of a sequence saw: errors, movements, steps."""

    def make(**kwargs):
        # The same groups of images, whatever the number of replicas.
        splits = 2 // strategy.num_replicas_in_sync
        return make_model(splits, ready_views=True, **kwargs)

    with strategy.scope():
        followers = list(SEQUENCES[name](make))
    queries = parameters(followers[-1].model.query_encoder)
    return {
        f"followed/{name}": [(f.error, f.moved, f.steps) for f in followers],
        f"followed/{name}/query": np.concatenate([q.ravel() for q in queries]),
    }


def evaluated(model):
    """Losses and accuracies of held-out images, by kind of data.

    And what a `HealthMonitor` measures, by name, with views that it draws.
    """
    images = make_images(3 * BATCH)
    history = model.fit(
        images,
        batch_size=BATCH,
        epochs=2,
        validation_data=images[::-1],
        callbacks=[HealthMonitor(images, np.arange(3 * BATCH) % 4)],
        verbose=0,
    ).history
    dataset = tf.data.Dataset.from_tensor_slices(images[::-1])
    dataset = dataset.batch(BATCH, drop_remainder=True)
    results = {
        "fit": [history["val_loss"], history["val_contrastive_accuracy"]],
        "array": model.evaluate(images[::-1], batch_size=BATCH, verbose=0),
        "data set": model.evaluate(dataset, verbose=0),
        # Ready views, whose steps are traced without the augmenter.
        "batch": model.test_on_batch(ready_views(images[:BATCH])),
    }
    # Not multiples of the batch.
    odd = {BATCH + 3: make_images(BATCH + 3), 7: ready_views(make_images(7))}
    for count, data in odd.items():
        values = model.evaluate(data, batch_size=BATCH, verbose=0)
        results[f"{count} are finite"] = np.isfinite(values)
    results = {f"evaluated/{name}": value for name, value in results.items()}
    for name, values in history.items():
        if name.startswith("health_"):
            results[f"health/{name}"] = values
    return results


def save_and_export(model, folder):
    """Saves and exports a model; returns the folder of its export."""
    version = export_encoder(model, folder / "encoder")
    model.save(folder / "model.keras")
    return version


class Interrupted(Exception):
    """Stands in for a user's Ctrl-C."""


def interrupted(strategy, folder):
    """Moving means of a model whose epoch was interrupted, by who reads them.

    Those of each replica before, and those that were read after.
    """
    with strategy.scope():
        model = make_model(splits=1, ready_views=True)
    views = ready_views(make_images(4 * BATCH))

    def train(act):
        def act_once(batch, logs):
            if batch == 2:
                act()

        watch = keras.callbacks.LambdaCallback(on_train_batch_end=act_once)
        model.fit(views, batch_size=BATCH, callbacks=[watch], verbose=0)

    def stop():
        raise Interrupted

    def mean(encoder):
        (mean,) = (v for v in encoder.variables if v.name == "moving_mean")
        return mean

    def exported():
        version = save_and_export(model, folder)
        images = make_images(19)
        results["predicted"] = model.predict(images, 8, verbose=0)
        return mean(keras.models.load_model(version / "encoder.keras")).numpy()

    def predicted():
        model.predict(make_images(BATCH), verbose=0)
        return copies(mean(model.query_encoder))

    def exported_by_keras():
        model.export(folder / "keras", verbose=False)
        loaded = tf.saved_model.load(folder / "keras")
        (value,) = (v for v in loaded.variables if "moving_mean" in v.name)
        return value.numpy()

    def extracted():
        features.extract(model, make_images(BATCH))
        return copies(mean(model.query_encoder))

    results = {}
    for read in (exported, predicted, exported_by_keras, extracted):
        with contextlib.suppress(Interrupted):
            train(stop)
        name = f"interrupted/{read.__name__}"
        results[f"{name}/before"] = copies(mean(model.query_encoder))
        results[name] = read()
    train(model.average_statistics)  # within an epoch, which continues
    results["read within"] = copies(mean(model.query_encoder))
    return results


def normalized(strategy):
    """Projections of both encoders of a model that holds a `Normalization`."""
    images = make_images(BATCH)
    with strategy.scope():
        inputs = keras.Input((8, 8, 3))
        normalize = keras.layers.Normalization()
        backbone = keras.Model(inputs, normalize(inputs))
        normalize.adapt(np.random.default_rng(1).normal(3, 5, (64, 8, 8, 3)))
        model = MoCo(build_encoder(backbone, 8, 4), queue_size=37)
    return {
        f"normalized/{name}": getattr(model, name).predict(images, verbose=0)
        for name in ("query_encoder", "key_encoder")
    }


def chief_first(strategy, path):
    """Whether others wait for a file that the chief makes slowly."""
    with distribution.chief_first(strategy):
        if distribution.is_chief(strategy):
            time.sleep(1)
            path.touch()
        return path.exists()


def complaints(strategy):
    """The error message for each kind of bad input, by name."""
    with strategy.scope():
        model = make_model()
        small = make_model(queue_size=8, ready_views=True)
        hasty = make_model()
        hasty.compile(optimizer=optimizers.SGD(0.1), steps_per_execution=2)
        loose = make_model()
    outside = make_model()
    loose.compile(optimizer=optimizers.SGD(0.1))
    images = make_images(40)
    views = ready_views(images)
    unequal = tf.data.Dataset.from_tensor_slices(images).batch(16)

    def fit_in_scope():
        with strategy.scope():
            outside.fit(images, batch_size=16)

    attempts = {
        "indivisible": lambda: model.fit(images, batch_size=15),
        "unequal": lambda: model.fit(unequal),
        "queue": lambda: small.fit(views, batch_size=16, verbose=0),
        "steps": lambda: hasty.fit(images, batch_size=16, verbose=0),
        "compiled": lambda: loose.fit(images, batch_size=16),
        "built": fit_in_scope,
    }
    messages = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            messages[f"complaint/{name}"] = str(error)
    return messages


def compare(strategy, folder):
    """Results of `RUNS`, and of all else that needs the same strategy."""
    replicas = strategy.num_replicas_in_sync
    workers = distribution.is_multi_worker(strategy)
    results = {}
    for name, (splits, settings, counts) in RUNS.items():
        if ("workers" if workers else replicas) not in counts:
            continue
        with strategy.scope():
            model = make_model(
                splits // replicas if splits == 2 else splits, **settings
            )
        for key, value in train(model).items():
            results[f"{name}/{key}"] = value
        if name == "plain":
            if workers:
                if distribution.is_chief(strategy):
                    save_and_export(model, folder)
                images = make_images(19)
                results["predicted"] = model.predict(images, 8, verbose=0)
            results |= evaluated(model)  # whose step is traced already
        if name == "batch norm" and replicas == 2:
            results |= are_same(model)
    if not workers:
        results |= drawn(strategy)
    if replicas <= 2:
        results |= overflow(strategy)
        if not workers:
            results |= of_moco_v3(strategy)
            for name in SEQUENCES:
                results |= followed(strategy, name)
            results |= classified(strategy)
    if replicas == 2:
        results |= complaints(strategy)
        results |= gathered(strategy)
        results |= not_compiled(strategy, folder)
        results |= interrupted(strategy, folder)
        results |= normalized(strategy)
    elif workers:
        results["chief first"] = chief_first(strategy, folder.parent / "made")
    elif replicas == 4:
        with strategy.scope():
            for shuffle in ("replicas", "none"):
                results[f"cheat/{shuffle}"] = cheat(shuffle)
    return results


def train_or_die(strategy, folder=None, dies=False):
    """Trains with batch norm; resumes from checkpoints if a folder is given.

    With `dies`, a worker other than the chief dies on the way.

    Returns:
        The trained values, by number, and the number of steps that it took.
    """
    trained = 0
    with strategy.scope():
        model = make_model(splits=1, ready_views=True)

    def perhaps_die(batch, logs):
        nonlocal trained
        trained += 1
        steps = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        if dies and steps == 8 and not distribution.is_chief(strategy):
            os._exit(9)

    callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=perhaps_die)]
    if folder:
        callbacks.append(Checkpoint(folder / "run", "2 steps"))
    model.fit(
        ready_views(make_images(5 * BATCH)),
        batch_size=BATCH,
        epochs=3,
        callbacks=callbacks,
        verbose=0,
    )
    variables = (*model.variables, *model.optimizer.variables)
    values = {  # by number, since names count up in a process
        str(i): keras.ops.convert_to_numpy(v)
        for i, v in enumerate(variables)
        if not any(v is metric for metric in model.metrics_variables)
    }
    return values, trained


def die(strategy, folder):
    """Trains until a worker other than the chief dies."""
    return train_or_die(strategy, folder, dies=True)


def survive(strategy, folder):
    """Resumes after a worker has died, and trains again without a death."""
    results = {}
    for name, where in {"rest": folder, "whole": None}.items():
        values, steps = train_or_die(strategy, where)
        results[f"steps of {name}"] = steps
        for key, value in values.items():
            results[f"{name}/{key}"] = value
    return results


def where_a_batch_waits():
    """The second device, taken for a GPU, and the device of the next batch."""
    second = accelerators.logical_devices()[1]
    accelerators.logical_devices = lambda: [second]
    numbers = tf.data.Dataset.range(8).batch(4)
    alone = tf.distribute.get_strategy()
    batches = distribution.distribute_batches(
        numbers, lambda parts: parts, alone
    )
    batches = list(batches)
    np.testing.assert_array_equal(batches[0], range(4))
    return [second, batches[1].device]


def needs(strategy, folder):
    """The problems and collectives of a step on GPUs, by kind of step."""
    accelerators.on_gpu = lambda: True
    results = {"where a batch waits": where_a_batch_waits()}
    # The first pipeline has all layers of the others, and what a precision
    # changes between replicas needs no augmenter.
    cases = [
        ("moco_v2", "float32", "batch"),
        (None, "mixed_bfloat16", "batch"),
        (None, "mixed_float16", "batch"),
        (None, "float32", "sync"),
    ]
    with strategy.scope():
        for pipeline, precision, norm in cases:
            with shallow.networks():
                step = traced_step(pipeline, precision, norm=norm)
            report = kernels.report(step)
            name = f"{pipeline or 'ready views'}/{precision}/{norm}"
            results[f"problems/{name}"] = kernels.problems(
                report, branches=3 if precision == "mixed_float16" else 0
            )
            for kind in ("Gather", "Reduce"):
                count = report.operations[f"Collective{kind}V2"]
                results[f"{kind}/{name}"] = (
                    count / strategy.num_replicas_in_sync
                )
    return results


def main(what, replicas, folder):
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if "TF_CONFIG" in os.environ:
        # NCCL refuses two workers on one GPU.
        tf.config.set_visible_devices([], "GPU")
        if replicas == 4:
            two_cpus_a_worker()
        strategy = distribution.strategy("auto")
    else:
        logical_devices(replicas)
        strategy = distribution.strategy("mirrored" if replicas > 1 else "none")
    assert strategy.num_replicas_in_sync == replicas
    results = {
        "compare": compare,
        "needs": needs,
        "survive": survive,
        "die": die,
    }[what](strategy, folder)
    np.savez(folder / "results.npz", **results)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
