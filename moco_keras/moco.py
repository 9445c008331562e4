"""MoCo as a Keras model."""

import contextlib
import functools
import reprlib
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from moco_keras import arguments, distribution, random, shuffle_bn, step_errors
from moco_keras.data import checks, inputs
from moco_keras.data.views import augment, random_states
from moco_keras.distribution import accelerators
from moco_keras.key_queue import KeyQueue
from moco_keras.models import encoders, model_state
from moco_keras.momentum import MomentumUpdate, freeze_alike, parameters
from moco_keras.training.checkpoint import (
    Checkpoint,
    Position,
    ResumedCallbacks,
)


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
            optimizer's `iterations`, such as a Keras `LearningRateSchedule`.
        temperature: divides the similarities.
        symmetric: whether each view serves as query and as key in turn. The two
            losses are added, as the CIFAR-10 notebook does, and 2N keys enter
            the queue.
        shuffle: order of the images in the key encoder, against batch
            statistics that give the answer away. "replicas": a random one over
            all replicas, and on one device over the groups of split batch
            norms, so that keys and queries are grouped differently; "split":
            a random one within each replica; "none": that of the queries.

    `momentum` and `temperature` may be set at any time, in a callback too, and
    count from the next step on.

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
        shuffle="replicas",
        **kwargs,
    ):
        from moco_keras import augmentations  # slow to import

        encoders.check_defaults()
        super().__init__(**kwargs)
        _check_arguments(encoder, shuffle)
        self.query_encoder = encoder
        # As trainable as the query encoder, on purpose: Keras runs a frozen
        # batch norm in inference mode, and keys must be normalized as queries
        # are. Gradients never reach it, since `trainable_variables` lists the
        # query encoder alone.
        self.key_encoder = keras.models.clone_model(encoder)
        model_state.copy_state(encoder, self.key_encoder)
        self.augmenter = augmenter
        self.queue = KeyQueue(
            arguments.whole(queue_size=queue_size), encoder.output_shape[-1]
        )
        self.momentum = momentum
        # Not a Keras variable: it is a setting, which a checkpoint of another
        # training must not change.
        self._temperature_variable = tf.Variable(1.0, trainable=False)
        self.temperature = temperature
        self.symmetric = bool(symmetric)
        self.shuffle = shuffle
        self._shuffle_seed = keras.random.SeedGenerator()
        # The optimiser's count leaves out what loss scaling skips.
        self.steps = self.add_weight(
            shape=(), dtype="int64", trainable=False, name="steps"
        )
        # Whether the optimizer has moved the query encoder in the last step.
        self.updated = tf.Variable(True, trainable=False)
        # Of the views of the last step: the largest difference between the two
        # of an image, and the largest value.
        self._views_seen = tf.Variable([1.0, 255.0], trainable=False)
        self._momentum_update = MomentumUpdate()
        self._statistics = distribution.ReplicaValues(
            self.statistics, self.distribute_strategy
        )
        self._drifted = False
        self._traced_with = self._frozen_since = None
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

    @property
    def momentum(self):
        """The m of the paper: a float, or a schedule."""
        return self._momentum

    @momentum.setter
    def momentum(self, momentum):
        if not callable(momentum):
            momentum = arguments.real(arguments.SHARE, momentum=momentum)
        self._momentum = momentum

    @property
    def temperature(self):
        """A float that divides the similarities."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature):
        temperature = arguments.real(
            arguments.POSITIVE, temperature=temperature
        )
        self._temperature = temperature
        self._temperature_variable.assign(temperature)

    def train_step(self, data):
        """One step of Algorithm 1; the momentum update is in its callback."""
        im_1, im_2 = self._two_views(data)
        are_ready = isinstance(checks.images_of(data), tuple)
        self._views_seen.assign(_extremes(im_1, im_2, are_ready))
        pairs = [(im_1, im_2)] + [(im_2, im_1)] * self.symmetric
        # Of all replicas, (global N, C) each.
        keys = [self._encode_keys(im_k) for _, im_k in pairs]
        loss = 0.0
        with tf.GradientTape() as tape:
            for (im_q, _), k in zip(pairs, keys, strict=True):
                k = distribution.replica_slice(k)
                q = _unit_rows(shuffle_bn.encode(self.query_encoder, im_q))
                losses, hits = self._contrast(q, k)
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
        return distribution.replica_logs(
            self.get_metrics_result(), self.distribute_strategy
        )

    def test_step(self, data):
        """Loss and accuracy of held-out images against the queue.

        It changes nothing: both encoders use their moving statistics, and the
        keys do not enter the queue. Views that the augmenter cuts are the same
        every time, if it is a Keras layer.
        """
        with keras.StatelessScope(self._states_of_evaluation()):
            im_1, im_2 = self._two_views(data)
        loss = 0.0
        for im_q, im_k in [(im_1, im_2)] + [(im_2, im_1)] * self.symmetric:
            q = _unit_rows(self.query_encoder(im_q, training=False))
            k = _unit_rows(self.key_encoder(im_k, training=False))
            losses, hits = self._contrast(q, k)
            loss += losses
            self._accuracy.update_state(hits)
        self._loss.update_state(loss)
        return distribution.replica_logs(
            self.get_metrics_result(), self.distribute_strategy
        )

    def _states_of_evaluation(self):
        """States of the augmenter that depend on the batch's number alone."""
        # The images evaluated so far, on all replicas.
        number = self._accuracy.count * distribution.num_replicas()
        return [
            (v, random.fold_in(random.key(0, "evaluation", i), number))
            for i, v in enumerate(random_states(self.augmenter))
        ]

    def _contrast(self, q, k):
        return self.queue.contrast(
            q, k, tf.convert_to_tensor(self._temperature_variable)
        )

    def _two_views(self, data):
        images = checks.images_of(data)
        if isinstance(images, tuple):
            im_q, im_k = images
            checks.check_pair(im_q, im_k)
        elif self.augmenter is None:
            raise ValueError(
                "`MoCo` needs an `augmenter` to train on images. Give it one, "
                "or pass `fit` ready pairs of views, `fit((im_q, im_k))`."
            )
        else:
            checks.check_images(images)
            im_q, im_k = (augment(self.augmenter, images) for _ in "qk")
        checks.check_views(im_q, im_k, self.query_encoder)
        return im_q, im_k

    def _encode_keys(self, im_k):
        """The keys of all replicas, (global N, C), in the images' order."""
        across = self.shuffle == "replicas"
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
            gradients = distribution.all_reduce_overflow(gradients)
        # As a number of its own, not the variable that counts.
        before = tf.identity(self.optimizer.iterations)
        distribution.apply_gradients(self.optimizer, gradients, variables)
        self.updated.assign(tf.not_equal(self.optimizer.iterations, before))

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        **kwargs,
    ):
        """Configures the training, as `keras.Model.compile` does.

        Layers of the key encoder are frozen where those of the query encoder
        are. Call it again after freezing or thawing layers.

        Args:
            optimizer: a Keras optimizer. With `gradient_accumulation_steps`, a
                step of the method is an update of the optimizer: the key
                encoder moves once an update, and the keys of each batch enter
                the queue.
            loss, loss_weights, metrics, weighted_metrics: not taken: the loss
                is InfoNCE, and `contrastive_accuracy` is measured beside it.
            kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: if another loss or other metrics are given, or
                gradients cannot be accumulated.
        """
        _refuse(
            "`MoCo` computes its own loss, InfoNCE, and its accuracy. Leave it "
            "out, and use callbacks to measure more, `KNNMonitor` for example.",
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
        )
        super().compile(optimizer=optimizer, **kwargs)
        distribution.check_accumulation(
            self.optimizer, self.distribute_strategy
        )
        self._frozen_since = None

    def compile_from_config(self, config):
        """Compiles a loaded model; its devices decide on `jit_compile`."""
        saved = {k: v for k, v in config.items() if k != "jit_compile"}
        self.compile(**keras.saving.deserialize_keras_object(saved))
        self._build_optimizer()

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ):
        """Trains on images, or on ready pairs of views.

        Args:
            x: uint8 images (N, H, W, 3), as an array or a batched
                `tf.data.Dataset` of images, of (image, label) or of {"image",
                "label"}; labels are ignored. Or pairs of views, float (N, S, S,
                3) each, as `(im_q, im_k)` or a data set of such tuples, which
                are used as they are. Or what `data.two_views` returns.
            y: ignored labels.
            batch_size: images in a batch of an array, by default 32. The last
                batch is dropped when it is not full.
            epochs, verbose, initial_epoch: as in `keras.Model.fit`.
            callbacks: as in `keras.Model.fit`. A `MomentumUpdate` is added
                where there is none. A `Checkpoint` among them that finds a
                saved training resumes it, within an epoch too.
            validation_split: part of the images of arrays, from their end, that
                is not trained on but evaluated after each epoch.
            validation_data: the same as `x`, to be evaluated after each epoch.
            shuffle: whether an array is put in a new order every epoch.
            class_weight, sample_weight: not taken.
            steps_per_epoch: batches that count as an epoch; by default those of
                all images. A data set begins again where it ends. One that is
                to resume exactly must have the same order each time it is read:
                `shuffle(..., seed=0, reshuffle_each_iteration=False)`.
            validation_steps, validation_batch_size, validation_freq: as in
                `keras.Model.fit`.

        Returns:
            A `keras.callbacks.History`; `val_loss` and
            `val_contrastive_accuracy` are those of `evaluate`.

        Raises:
            ValueError: if the data, the batch and the queue do not fit
                together, or a saved training was interrupted in an epoch of
                other batches.
            ConnectionError: if another worker is lost.
            FileNotFoundError: if a file is gone whose turn it is.
        """
        _refuse_weights(class_weight, sample_weight)
        epochs, batch_size, steps_per_epoch = _counts(
            epochs=epochs,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
        )
        validation_steps, validation_batch_size = _counts(
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
        )
        initial_epoch = arguments.whole(
            arguments.INDEX, initial_epoch=initial_epoch
        )
        if not isinstance(validation_freq, (list, tuple)):
            (validation_freq,) = _counts(validation_freq=validation_freq)
        accelerators.warn_of_unused_gpu()
        strategy = self.distribute_strategy
        callbacks = self._with_own(callbacks)
        if validation_split and validation_data is None:
            x, validation_data = inputs.split(x, validation_split)
        batches = inputs.training_batches(
            x, batch_size, strategy, steps_per_epoch
        )
        if validation_data is not None:
            validation_data, validation_steps = inputs.evaluation_batches(
                validation_data,
                validation_batch_size
                or inputs.size_for(validation_data, batches.batch_size),
                strategy,
                validation_steps=validation_steps,
            )
        fit = functools.partial(
            super().fit,
            verbose=verbose,
            shuffle=False,  # they are shuffled
            validation_data=validation_data,
            validation_steps=validation_steps,
            validation_freq=validation_freq,
        )
        steps = steps_per_epoch or batches.steps
        with contextlib.ExitStack() as stack:
            stack.enter_context(_readable_errors(strategy))
            start = Position(initial_epoch, 0, self._steps_taken())
            if self.compiled:
                self._prepare()
                sizes = batches.batch_size, batches.num_images, steps
                start = self._restored(start, sizes, callbacks[-1], stack)
                if start.epochs >= epochs:
                    self._say_that_all_is_done(start.epochs, epochs)
                else:
                    self._warn_of_a_schedule_that_has_ended(steps or 1)

            def read(done):
                # Of these all processes have the same values.
                seed = int(ops.convert_to_numpy(self._shuffle_seed.state)[0])
                taken = self._steps_taken() - start.began
                return batches.read(seed, shuffle, start.began, taken, done)

            initial_epoch, done = start.epochs, start.batches
            if not (steps or isinstance(x, tf.data.Dataset)):
                done = 0  # a generator begins its epoch anew
            if done and inputs.has_ended(rest := read(done)):
                initial_epoch, done = initial_epoch + 1, 0
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
                fit(
                    rest,
                    epochs=initial_epoch + 1,
                    callbacks=callbacks,
                    initial_epoch=initial_epoch,
                    steps_per_epoch=steps and steps - done,
                )
                initial_epoch, callbacks.done = initial_epoch + 1, 0
                if self.stop_training:
                    epochs = initial_epoch
            return fit(
                read(0),
                epochs=epochs,
                callbacks=callbacks,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps,
            )

    def _steps_taken(self):
        return int(ops.convert_to_numpy(self.steps))

    def _restored(self, start, sizes, checkpoint, stack):
        """Where a training starts that the last callback may have saved."""
        if not isinstance(checkpoint, Checkpoint):
            return start
        stack.enter_context(checkpoint.at_work())
        saved = checkpoint.restore(self, sizes)
        if saved.epochs < start.epochs:
            return start._replace(began=saved.began)
        return saved

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Loss and contrastive accuracy of held-out images; see `test_step`.

        Args:
            x: as in `fit`. On several replicas the last batch of an array is
                dropped when it is not full.
            y: ignored labels.
            sample_weight: not taken.
            batch_size, verbose, steps, callbacks, return_dict: as in
                `keras.Model.evaluate`.

        Returns:
            The loss in nats and the accuracy, or a dict of them.

        Raises:
            ValueError: if the images cannot be evaluated.
        """
        _refuse_weights(sample_weight=sample_weight)
        strategy = self.distribute_strategy
        # Those of `fit` are batches already.
        if not kwargs.get("_use_cached_eval_dataset"):
            batch_size, steps = _counts(batch_size=batch_size, steps=steps)
            x, steps = inputs.evaluation_batches(
                x, batch_size, strategy, steps=steps
            )
        self.average_statistics()
        self._trace_anew()
        with _readable_errors(strategy):
            return super().evaluate(
                x,
                verbose=verbose,
                steps=steps,
                callbacks=callbacks,
                return_dict=return_dict,
                **kwargs,
            )

    def train_on_batch(
        self,
        x,
        y=None,
        sample_weight=None,
        class_weight=None,
        return_dict=False,
    ):
        """One step on one batch, the update of the key encoder included.

        Args:
            x: uint8 images (N, H, W, 3), or a pair of views; see `fit`.
            y: ignored labels.
            sample_weight, class_weight: not taken.
            return_dict: whether to return a dict.

        Returns:
            The loss in nats and the contrastive accuracy, or a dict of them.

        Raises:
            ValueError: if the batch cannot be trained on.
        """
        _refuse_weights(class_weight, sample_weight)
        batch = inputs.single_batch(x, self.distribute_strategy)
        update = self._momentum_update
        with _readable_errors(self.distribute_strategy):
            if self.compiled:
                self._prepare()
                update.set_model(self)
                update.on_train_begin()
            logs = super().train_on_batch(batch, return_dict=return_dict)
            self._drifted = True
            update.on_train_batch_end(0)
        return logs

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """What `evaluate` returns, of one batch."""
        _refuse_weights(sample_weight=sample_weight)
        batch = inputs.single_batch(x, self.distribute_strategy)
        self.average_statistics()
        self._trace_anew()
        with _readable_errors(self.distribute_strategy):
            return super().test_on_batch(batch, return_dict=return_dict)

    @property
    def metrics(self):
        """Loss and contrastive accuracy; Keras's own loss is not used."""
        return [self._loss, self._accuracy]

    def _with_own(self, callbacks):
        """The user's callbacks, and those that every training needs."""
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        callbacks = list(keras.tree.flatten(callbacks or []))
        if not any(isinstance(c, MomentumUpdate) for c in callbacks):
            # First, so that the others see the key encoder after its step.
            callbacks = [self._momentum_update, *callbacks]
        for kind in (MomentumUpdate, Checkpoint):
            count = sum(isinstance(c, kind) for c in callbacks)
            if count > 1:
                raise ValueError(
                    f"`callbacks` must hold one `{kind.__name__}` at most: the "
                    "key encoder moves once a step, and a training resumes "
                    f"from one place. Received: {count}. Leave all but one out."
                )
        # A `Checkpoint` last, to save what the others have done.
        callbacks.sort(key=lambda c: isinstance(c, Checkpoint))
        return [_Watch(), *callbacks]

    def _prepare(self):
        """What there is to do before a step."""
        self._trace_anew()
        self._build_optimizer()

    def _trace_anew(self):
        # Keras keeps the traced step until `compile`, whatever has been set.
        now = self.augmenter, self.symmetric, self.shuffle
        # Of layers `==` asks whether they are the same.
        if self._traced_with is None or now != self._traced_with():
            self.train_function = self.test_function = None
            # A function, or Keras would take the augmenter for another layer.
            self._traced_with = lambda: now

    def _check_frozen(self):
        """Refuses layers that were frozen or thawed since the first step.

        Raises:
            ValueError: until the model is compiled again.
        """
        layers = model_state.layers(self.query_encoder)
        frozen = [layer.name for layer in layers if not layer.trainable]
        if self._frozen_since is None:
            self._frozen_since = frozen
            freeze_alike(self.key_encoder, self.query_encoder)
        changed = set(frozen) ^ set(self._frozen_since)
        if changed:
            raise ValueError(
                "After layers are frozen or thawed the model must be compiled "
                f"again. Received: {', '.join(sorted(changed)[:3])}, which "
                "changed after the model was trained. Call `compile`."
            )

    def _build_optimizer(self):
        self._check_frozen()
        if parameters(self.query_encoder) and not self.trainable_variables:
            raise ValueError(
                "The query encoder must have something to train. Received one "
                "whose layers are all frozen. Set `trainable=True` on some, "
                "and compile again."
            )
        # Keras would build it while it traces `train_step`, and have to trace
        # it again, which doubles the wait for the first step.
        distribution.check_scope(
            self.distribute_strategy,
            model=self.variables,
            optimizer=self.optimizer.variables,
        )
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)

    def _say_that_all_is_done(self, done, epochs):
        if distribution.is_chief(self.distribute_strategy):
            print(
                f"\nNothing is left to train: {done} epochs are done. "
                f"Received: epochs={epochs}. To train further, give more.",
                file=sys.stderr,
            )

    def _warn_of_a_schedule_that_has_ended(self, steps):
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        # Keras has no public way to the schedule itself.
        schedule = optimizer._learning_rate
        if not isinstance(
            schedule, keras.optimizers.schedules.LearningRateSchedule
        ):
            return
        done = int(ops.convert_to_numpy(optimizer._iterations))
        # A warm-up begins at 0, too.
        if all(float(schedule(done + i)) == 0 for i in (0, 1, steps)):
            warnings.warn(
                f"The learning rate is 0 from here on: {done} steps are done, "
                "at which the optimizer's schedule has ended. No weight will "
                "move. To train on, call `compile` with a new optimizer.",
                stacklevel=3,
            )

    def _warn_of_views(self):
        """Of the first batch, whose views cannot be meant."""
        apart, largest = self._views_seen.numpy()
        if largest <= 2 and encoders.takes_pixels(self.query_encoder):
            warnings.warn(
                "The encoder takes pixels in [0, 255], and normalizes them "
                "itself. Received a first batch of views whose largest value "
                f"is {largest:.3g}. Use an augmenter that does not rescale, or "
                "multiply the views by 255.",
                stacklevel=2,
            )
        if apart == 0:
            warnings.warn(
                "The two views of an image must differ, or finding the key of "
                "the other one teaches nothing. Received a first batch of "
                "equal views. Use an augmenter that changes images at random, "
                "such as those of `moco_keras.augmentations`.",
                stacklevel=2,
            )

    def average_statistics(self):
        """Gives all replicas the mean of their batch norms' moving statistics.

        Each replica's follow its own batches. `fit` calls it after every epoch,
        before other callbacks evaluate or save. `save`, `predict`, `export` and
        `export_encoder` call it where an epoch was interrupted; many workers
        must then do so together.
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
        images = checks.images_of(images)
        checks.check_images(images)
        images = self._evaluation(images)
        return _unit_rows(self.query_encoder(images, training=training))

    def predict(self, x, batch_size=None, verbose="auto", steps=None, **kwargs):
        """Projects as `call` does; arguments as in `keras.Model.predict`.

        What the projections are made of, the features, come from
        `features.extract(model, images)`.
        """
        self.average_statistics()  # after an epoch that was interrupted
        kwargs |= {"verbose": verbose, "steps": steps}
        predict = super().predict
        if not isinstance(x, (np.ndarray, tf.Tensor)) or steps is not None:
            return predict(x, batch_size=batch_size, **kwargs)
        checks.check_images(x)  # here their values are known
        return distribution.predict(
            lambda x, size: predict(x, batch_size=size, **kwargs),
            np.asarray(x),
            batch_size or 32,
            self.distribute_strategy,
        )

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Writes a SavedModel that projects as `predict` does.

        Its `serve` takes uint8 images, and returns what the loss compares,
        float32 (N, C), L2-normalised. For features, image files, versions for a
        server, and other runtimes there is `export_encoder`.

        Args:
            filepath: folder to write.
            format: "tf_saved_model".
            kwargs: as in `keras.Model.export`.

        Raises:
            ValueError: if it is another format.
        """
        if format != "tf_saved_model":
            raise ValueError(
                '`format` must be "tf_saved_model". Received: '
                f"format={format!r}. `export_encoder(model, PATH, format=...)` "
                "writes encoders for ONNX Runtime and LiteRT."
            )
        self.average_statistics()
        resized = not isinstance(self._evaluation, keras.layers.Identity)
        size = (None, None) if resized else self.query_encoder.input_shape[1:3]
        images = keras.Input((*size, 3), dtype="uint8", name="images")
        # Without the key encoder and the queue.
        project = keras.Model(images, self.call(images))
        project.export(filepath, format, **kwargs)

    @property
    def statistics(self):
        """What replicas may hold differently: moving means and variances.

        All weights of both encoders that are float32 and no parameters.
        """
        found = []
        for encoder in (self.query_encoder, self.key_encoder):
            others = {id(v) for v in parameters(encoder)}
            found += [
                v
                for v in encoder.weights
                if id(v) not in others and v.dtype == "float32"
            ]
        return found

    @property
    def trainable_variables(self):
        """Those of the query encoder: what the optimiser moves."""
        return self.query_encoder.trainable_variables

    @property
    def non_trainable_variables(self):
        """All others: the key encoder's, the queue's, statistics, states."""
        trainable = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trainable]

    @property
    def non_trainable_weights(self):
        """The same, without metrics and random states."""
        trainable = {id(v) for v in self.trainable_variables}
        return [v for v in self.weights if id(v) not in trainable]

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


def _extremes(im_1, im_2, are_ready):
    """The largest difference and the largest value of views, float32 (2,).

    The pixels of ready views are the user's business: 255 stands for theirs.
    """
    im_1, im_2 = tf.cast(im_1, "float32"), tf.cast(im_2, "float32")
    apart = tf.reduce_max(tf.abs(im_1 - im_2))
    return tf.stack([apart, 255.0 if are_ready else tf.reduce_max(im_1)])


class _Watch(keras.callbacks.Callback):
    """Averages statistics after an epoch; looks for what cannot be meant."""

    _first = True

    def on_epoch_begin(self, epoch, logs=None):
        self.model._check_frozen()  # another callback may have frozen some
        self._batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        # A callback may have read the model, and averaged, in this epoch.
        self.model._drifted = True

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        if self._first:
            self._first = False
            self.model._warn_of_views()

    def on_epoch_end(self, epoch, logs=None):
        if not self._batches:
            raise ValueError(
                "A data set must have batches to train on. Received one that "
                f"had none for epoch {epoch + 1}. Look at where its images "
                "come from; `drop_remainder=True` drops a batch that is not "
                "full."
            )
        self.model.average_statistics()


@contextlib.contextmanager
def _readable_errors(strategy):
    with (
        distribution.readable_worker_errors(strategy),
        step_errors.readable_file_errors(),
        step_errors.readable_size_errors(),
    ):
        yield


def _counts(**counts):
    """Checks whole numbers; None stays None."""
    return [
        None if number is None else arguments.whole(**{name: number})
        for name, number in counts.items()
    ]


def _refuse_weights(class_weight=None, sample_weight=None):
    _refuse(
        "`MoCo` learns from images without labels, which all count alike. "
        "Leave the argument out.",
        class_weight=class_weight,
        sample_weight=sample_weight,
    )


def _refuse(reason, **values):
    """Refuses arguments of Keras's that have no meaning here."""
    for name, value in values.items():
        empty = isinstance(value, (list, tuple, dict)) and not value
        if value is not None and not empty:
            raise ValueError(
                f"{reason} Received: {name}={reprlib.repr(value)}."
            )


def _check_arguments(encoder, shuffle):
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
    if shuffle not in ("replicas", "split", "none"):
        raise ValueError(
            '`shuffle` must be "replicas", "split" or "none". '
            f"Received: shuffle={shuffle!r}."
        )
