"""MoCo as a Keras model."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from moco_keras import accelerators, distribution, inputs, shuffle_bn
from moco_keras.checkpoint import Checkpoint, ResumedCallbacks
from moco_keras.key_queue import KeyQueue
from moco_keras.momentum import MomentumUpdate


@keras.saving.register_keras_serializable(package="moco_keras")
class MoCo(keras.Model):
    """Momentum Contrast: learns an image encoder without labels.

    A query encoder learns by gradient to find, among the keys held in a queue,
    the key of the other view of its image. The keys come from a second
    encoder, which follows the first one slowly (see `MomentumUpdate`).

    Args:
        encoder: functional `keras.Model` from images, float (N, S, S, 3), to
            projections, (N, C); `build_encoder` makes one. It becomes the query
            encoder, and a copy of it the key encoder.
        augmenter: layer or callable from uint8 images (N, H, W, 3) to random
            views, float (N, S, S, 3). It is called twice a batch. Not needed
            where `fit` gets ready pairs of views.
        queue_size: number of keys in the queue, K of the paper.
        momentum: m of the paper, in [0, 1]: a number, or a schedule of the
            number of steps taken, such as a Keras `LearningRateSchedule`.
        temperature: divides the similarities.
        symmetric: whether each view serves as query and as key in turn. The two
            losses are added, as the CIFAR-10 notebook does, and 2N keys enter
            the queue.
        shuffle: order of the images in the key encoder, against batch
            statistics that give the answer away. "replicas": a random one over
            all replicas, and on one device over the groups of split batch
            norms, so that keys and queries are grouped differently; "split":
            a random one within each replica; "none": that of the queries;
            "auto": "replicas".

    Raises:
        ValueError: if a value is out of range, or the encoder does not return
            one vector an image.

    Reference:
        Algorithm 1 of [He et al., 2020](https://arxiv.org/abs/1911.05722).

    Example:
        >>> encoder = build_encoder("resnet18", image_size=32)
        >>> model = MoCo(encoder, augmentations.moco_v2(32), queue_size=4096)
        >>> model.compile(optimizer=optimizers.SGD(0.06))
        >>> model.fit(images, batch_size=256, epochs=200)  # uint8 images
        >>> features = moco_keras.features.extract(model, images)
        >>> projections = model.predict(images)  # what the loss compares
    """

    def __init__(
        self,
        encoder,
        augmenter=None,
        *,
        queue_size=65536,
        momentum=0.999,
        temperature=0.07,
        symmetric=False,
        shuffle="auto",
        **kwargs,
    ):
        from moco_keras import augmentations  # slow to import

        super().__init__(**kwargs)
        _check_arguments(encoder, momentum, temperature, shuffle)
        self.query_encoder = encoder
        # Left trainable on purpose: Keras runs a frozen batch norm in inference
        # mode, and keys must be normalised by their own batch. Gradients never
        # reach it, since `trainable_variables` lists the query encoder alone.
        self.key_encoder = keras.models.clone_model(encoder)
        self.key_encoder.set_weights(encoder.get_weights())
        self.augmenter = augmenter
        self.queue = KeyQueue(queue_size, encoder.output_shape[-1])
        self.momentum = momentum
        self.temperature = temperature
        self.symmetric = symmetric
        self.shuffle = shuffle
        self._shuffle_seed = keras.random.SeedGenerator()
        # The optimiser's count leaves out what loss scaling skips.
        self.steps = self.add_weight(
            shape=(), dtype="int64", trainable=False, name="steps"
        )
        self._momentum_update = MomentumUpdate()
        self._statistics = distribution.OfReplicas(
            self.statistics, self.distribute_strategy
        )
        self._drifted = False
        height, width = encoder.input_shape[1:3]
        self._evaluation = (
            augmentations.evaluation(height)
            if height == width and height is not None
            else keras.layers.Identity(dtype="float32")
        )
        self._loss = keras.metrics.Mean(name="loss")
        self._accuracy = keras.metrics.Mean(name="contrastive_accuracy")
        # If asked to compile, Keras would compile the replicas' exchange, too,
        # which XLA refuses.
        self.supports_jit = self.distribute_strategy.num_replicas_in_sync == 1
        self.built = True

    def train_step(self, data):
        """One step of Algorithm 1; the momentum update is in its callback."""
        im_1, im_2 = self._two_views(data)
        pairs = [(im_1, im_2)] + [(im_2, im_1)] * self.symmetric
        # Of all replicas, (global N, C) each.
        keys = [self._encode_keys(im_k) for _, im_k in pairs]
        loss = 0.0
        with tf.GradientTape() as tape:
            for (im_q, _), k in zip(pairs, keys, strict=True):
                k = distribution.own_part(k)
                q = _unit_rows(shuffle_bn.encode(self.query_encoder, im_q))
                losses, hits = self.queue.contrast(q, k, self.temperature)
                loss += ops.mean(losses)
                self._accuracy.update_state(hits)
            # The optimiser adds the gradients of all replicas.
            scaled_loss = self.optimizer.scale_loss(
                loss / distribution.num_replicas()
            )
        self._descend(tape, scaled_loss)
        self.queue.enqueue(ops.concatenate(keys[::-1]))  # the notebook's order
        self._loss.update_state(loss)
        self.steps.assign_add(1)
        return distribution.logs(
            self.get_metrics_result(), self.distribute_strategy
        )

    def _two_views(self, data):
        images = inputs.images_of(data)
        if isinstance(images, tuple):
            im_q, im_k = images
        elif self.augmenter is None:
            raise ValueError(
                "`MoCo` needs an `augmenter` to train on images. Give it one, "
                "or pass `fit` ready pairs of views, `fit((im_q, im_k))`."
            )
        else:
            inputs.check_images(images)
            im_q, im_k = self.augmenter(images), self.augmenter(images)
        inputs.check_views(im_q, im_k, self.query_encoder)
        return im_q, im_k

    def _encode_keys(self, im_k):
        """The keys of all replicas, (global N, C), in the images' order."""
        across = self.shuffle in ("auto", "replicas")
        if self.shuffle != "none":
            im_k, order = shuffle_bn.shuffle(im_k, self._shuffle_seed, across)
        k = _unit_rows(shuffle_bn.encode(self.key_encoder, im_k))
        if across:
            return shuffle_bn.unshuffle(distribution.all_gather(k), order)
        if self.shuffle == "split":
            k = shuffle_bn.unshuffle(k, order)
        return distribution.all_gather(k)

    def _descend(self, tape, loss):
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # It looks for what is not finite on the first replica alone.
            gradients = distribution.share_overflow(gradients)
        self.optimizer.apply(gradients, variables)

    def compile_from_config(self, config):
        """Compiles a loaded model; its devices decide on `jit_compile`."""
        saved = {k: v for k, v in config.items() if k != "jit_compile"}
        super().compile_from_config(saved)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        shuffle=True,
        initial_epoch=0,
        steps_per_epoch=None,
        **kwargs,
    ):
        """Trains on images, or on ready pairs of views.

        Args:
            x: uint8 images (N, H, W, 3), as an array or a batched
                `tf.data.Dataset` of images, of (image, label) or of {"image",
                "label"}; labels are ignored. Or pairs of views, float (N, S, S,
                3) each, as `(im_q, im_k)` or a data set of such tuples, which
                are used as they are. Or what `data.two_views` returns.
            y: ignored labels.
            batch_size: images in a batch of an array, 32 unless told. The last
                batch is dropped when it is not full.
            epochs, verbose, callbacks, initial_epoch, kwargs: as in
                `keras.Model.fit`. A `MomentumUpdate` is added where `callbacks`
                holds none. A `Checkpoint` among them that finds a saved
                training goes on with it, within an epoch too.
            shuffle: whether an array is put in a new order every epoch.
            steps_per_epoch: batches that count as an epoch; those of all
                images unless told.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: if the data, the batch and the queue do not fit
                together.
            ConnectionError: if another worker is lost.
            FileNotFoundError: if a file is gone whose turn it is.
        """
        for name, value in {"epochs": epochs, "batch_size": batch_size}.items():
            if value is not None and value < 1:
                raise ValueError(
                    f"`{name}` must be at least 1. Received: {name}={value}."
                )
        accelerators.warn_of_unused_gpu()
        callbacks = self._with_own(callbacks)
        strategy = self.distribute_strategy
        read, steps = inputs.training_batches(x, batch_size, strategy)
        steps = steps_per_epoch or steps
        kwargs |= {"verbose": verbose, "shuffle": False}  # they are shuffled

        def batches(done):
            # Of these all processes have the same values.
            seed = int(ops.convert_to_numpy(self._shuffle_seed.state)[0])
            steps_taken = int(ops.convert_to_numpy(self.steps))
            return read(
                seed=seed, shuffle=shuffle, steps_taken=steps_taken, done=done
            )

        done = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(distribution.loss_of_workers(strategy))
            stack.enter_context(inputs.loss_of_files())
            stack.enter_context(inputs.batches_that_do_not_fit())
            if self.compiled:
                self._build_optimizer()
                if isinstance(callbacks[-1], Checkpoint):
                    stack.enter_context(callbacks[-1].at_work())
                    restored = callbacks[-1].restore(self)
                    if restored and restored[0] >= initial_epoch:
                        initial_epoch, done = restored
            if done and initial_epoch < epochs:
                callbacks = ResumedCallbacks(
                    callbacks,
                    done,
                    model=self,
                    epochs=epochs,
                    steps=steps,
                    verbose=verbose,
                )
                stack.enter_context(callbacks.one_training())
                super().fit(
                    batches(done),
                    epochs=initial_epoch + 1,
                    callbacks=callbacks,
                    initial_epoch=initial_epoch,
                    steps_per_epoch=steps and steps - done,
                    **kwargs,
                )
                initial_epoch, done = initial_epoch + 1, 0
                callbacks.done = 0
                if self.stop_training:
                    epochs = initial_epoch
            return super().fit(
                batches(done),
                epochs=epochs,
                callbacks=callbacks,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps,
                **kwargs,
            )

    def _with_own(self, callbacks):
        """The user's callbacks, and those that every training needs."""
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        callbacks = list(keras.tree.flatten(callbacks or []))
        if not any(isinstance(c, MomentumUpdate) for c in callbacks):
            # First, so that the others see the key encoder after its step.
            callbacks = [self._momentum_update, *callbacks]
        average = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: setattr(self, "_drifted", True),
            on_epoch_end=lambda epoch, logs: self.average_statistics(),
        )
        # A `Checkpoint` last, to save what the others have done.
        callbacks.sort(key=lambda c: isinstance(c, Checkpoint))
        return [average, *callbacks]

    def _build_optimizer(self):
        # Keras would build it while it traces `train_step`, and have to trace
        # it again, which doubles the wait for the first step.
        distribution.check_scope(
            self.distribute_strategy,
            model=self.variables,
            optimizer=[self.optimizer.iterations],
        )
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)

    def average_statistics(self):
        """Gives all replicas the mean of their batch norms' moving statistics.

        Each replica's follow its own batches. `fit` calls it after every epoch,
        before other callbacks evaluate or save, and so does `save`.
        """
        if not self._drifted:
            return  # so that the chief may save alone
        self._drifted = False
        self._statistics.average()

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Under a strategy Keras would take a batch from the data, to build what
        # is not built. Here everything is.
        pass

    def call(self, images, training=False):
        """Projects uint8 images: float32 (N, C), L2-normalized."""
        inputs.check_images(images)
        images = self._evaluation(images)
        return _unit_rows(self.query_encoder(images, training=training))

    def predict(self, x, batch_size=None, verbose="auto", steps=None, **kwargs):
        """Projects as `call` does; arguments as in `keras.Model.predict`.

        What the projections are made of, the features, come from
        `features.extract(model, images)`.
        """
        kwargs |= {"verbose": verbose, "steps": steps}
        predict = super().predict
        if not isinstance(x, (np.ndarray, tf.Tensor)) or steps is not None:
            return predict(x, batch_size=batch_size, **kwargs)
        return distribution.predict(
            lambda x, size: predict(x, batch_size=size, **kwargs),
            np.asarray(x),
            batch_size or 32,
            self.distribute_strategy,
        )

    @property
    def statistics(self):
        """Batch norms' moving means and variances, of both encoders."""
        return [
            v
            for encoder in (self.query_encoder, self.key_encoder)
            for v in encoder.non_trainable_variables
            if v.dtype == "float32"
        ]

    @property
    def trainable_variables(self):
        """Those of the query encoder: what the optimiser moves."""
        return self.query_encoder.trainable_variables

    @property
    def trainable_weights(self):
        """The same as `trainable_variables`."""
        return self.query_encoder.trainable_weights

    # Keras saves weights but no random states, and training could not go on to
    # the same numbers without them.
    def save_own_variables(self, store):
        """Saves steps and random states; every layer saves its own weights."""
        self.average_statistics()  # before the layers are saved
        for i, state in enumerate(self._states()):
            store[str(i)] = ops.convert_to_numpy(state)

    def load_own_variables(self, store):
        """Loads the steps and the random states."""
        for i, state in enumerate(self._states()):
            state.assign(store[str(i)])

    def _states(self):
        # Keras lists the random ones among the variables.
        random = [v for v in self.variables if v.name == "seed_generator_state"]
        return [*random, self.steps]

    def get_config(self):
        """All arguments by name."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "encoder": serialize(self.query_encoder),
            "augmenter": serialize(self.augmenter),
            "queue_size": self.queue.size,
            "momentum": serialize(self.momentum),
            "temperature": self.temperature,
            "symmetric": self.symmetric,
            "shuffle": self.shuffle,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the model again, with fresh weights."""
        from moco_keras import augmentations  # noqa: F401 (registers layers)

        nested = ("encoder", "augmenter", "momentum")
        loaded = {
            name: keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
            for name in nested
        }
        return cls(**{**config, **loaded})


def _unit_rows(x):
    # In float32 under mixed precision too.
    return ops.normalize(ops.cast(x, "float32"), axis=1)


def _check_arguments(encoder, momentum, temperature, shuffle):
    output_shape = getattr(encoder, "output_shape", None)
    if (
        not isinstance(output_shape, tuple)
        or len(output_shape) != 2
        or output_shape[-1] is None
    ):
        raise ValueError(
            "`encoder` must be a Keras model that returns one vector an image, "
            f"of shape (N, C). Received: {encoder!r} with output shape "
            f"{output_shape}. Pool and project, as `build_encoder` does."
        )
    if len(encoder.input_shape) != 4:
        raise ValueError(
            "`encoder` must take images, (N, height, width, 3). Received a "
            f"model that takes {encoder.input_shape}."
        )
    if not callable(momentum) and not 0 <= momentum <= 1:
        raise ValueError(
            "`momentum` must be in [0, 1], 0.99 for small data sets and 0.999 "
            f"for ImageNet, say. Received: momentum={momentum}."
        )
    if not temperature > 0:
        raise ValueError(
            "`temperature` must be positive, 0.07 to 0.2 as a rule. "
            f"Received: temperature={temperature}."
        )
    if shuffle not in ("auto", "split", "replicas", "none"):
        raise ValueError(
            '`shuffle` must be "auto", "split", "replicas" or "none". '
            f"Received: shuffle={shuffle!r}."
        )
