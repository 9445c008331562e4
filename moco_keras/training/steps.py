"""One step of pre-training: its views, its gradient, its numbers."""

import contextlib

import keras
import tensorflow as tf

from moco_keras import arguments, distribution, step_errors
from moco_keras.data import checks, inputs
from moco_keras.models import model_state
from moco_keras.momentum import MomentumUpdate, freeze_alike, parameters
from moco_keras.training import keras_arguments
from moco_keras.training.two_encoders import TwoEncoders


class SteppedModel(TwoEncoders):
    """What a method's `train_step` and `test_step` are made of.

    Args:
        encoder, augmenter, kwargs: as in `TwoEncoders`.
        momentum: m of the momentum update, in [0, 1]: a number, or a schedule
            of the optimizer's `iterations`.

    Attributes:
        updated: whether the optimizer moved the query encoder in the last step.
        views_seen: of the last step, the largest difference between the two
            views of an image, and the largest value; float32 (2,).

    Raises:
        ValueError: as `TwoEncoders`, or if the momentum is out of range.
    """

    def __init__(self, encoder, augmenter=None, *, momentum=0.999, **kwargs):
        super().__init__(encoder, augmenter, **kwargs)
        self.momentum = momentum

    def add_state(self):
        """As in `TwoEncoders`, and the metrics."""
        super().add_state()
        self.updated = tf.Variable(True, trainable=False)
        self.views_seen = tf.Variable([1.0, 255.0], trainable=False)
        self._momentum_update = MomentumUpdate()
        self._loss = keras.metrics.Mean(name="loss")
        self._accuracy = keras.metrics.Mean(name="contrastive_accuracy")
        self._traced_with = self._frozen_since = None
        # If asked to compile, Keras would compile the replicas' exchange, too,
        # which XLA refuses.
        self.supports_jit = self.distribute_strategy.num_replicas_in_sync == 1

    @property
    def momentum(self):
        """The m of the paper: a float, or a schedule."""
        return self._momentum

    @momentum.setter
    def momentum(self, momentum):
        if not callable(momentum):
            momentum = arguments.real(arguments.FRACTION, momentum=momentum)
        self._momentum = momentum

    @property
    def metrics(self):
        """Loss and contrastive accuracy; Keras's own loss is not used."""
        return [self._loss, self._accuracy]

    def losses_of_views(self, im_1, im_2):
        """The losses of held-out images; a method has its own.

        Args:
            im_1, im_2: views, float (N, H, W, C).

        Returns:
            Losses in nats, (N,), and whether each query was nearest to its own
            key, (N,) or a multiple; float32.
        """
        raise NotImplementedError

    def traced_settings(self):
        """Attributes that a traced step depends on; a method adds its own."""
        return (self.augmenter,)

    def training_views(self, data):
        """As `two_views`, and remembers what a first batch is checked for."""
        im_1, im_2 = self.two_views(data)
        values = tf.cast(im_1, "float32")
        apart = tf.reduce_max(tf.abs(values - tf.cast(im_2, "float32")))
        largest = tf.reduce_max(values)
        if isinstance(checks.unpack_images(data), tuple):
            # Dark ready views are the user's business.
            largest = tf.maximum(largest, self.pixels.bounds[1])
        self.views_seen.assign(tf.stack([apart, largest]))
        return im_1, im_2

    def scale_loss(self, loss):
        """What to take the gradient of, inside of the tape.

        The optimizer adds the gradients of all replicas.
        """
        return self.optimizer.scale_loss(loss / distribution.num_replicas())

    def apply_gradients(self, tape, scaled_loss):
        """Moves the trained models by the gradient of a scaled loss: a step."""
        variables = self.trainable_variables
        gradients = tape.gradient(scaled_loss, variables)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # It looks for what is not finite on the first replica alone.
            gradients = distribution.all_reduce_overflow(gradients)
        # As a number of its own, not the variable that counts.
        before = tf.identity(self.optimizer.iterations)
        distribution.apply_gradients(self.optimizer, gradients, variables)
        self.updated.assign(tf.not_equal(self.optimizer.iterations, before))
        self.steps.assign_add(1)

    def step_logs(self, losses, correct):
        """Counts a batch in the metrics, and returns what Keras logs."""
        self._accuracy.update_state(correct)
        self._loss.update_state(losses)
        return distribution.replica_logs(
            self.get_metrics_result(), self.distribute_strategy
        )

    def test_step(self, data):
        """Loss and accuracy of held-out images; it changes nothing.

        Encoders use their moving statistics. Views that the augmenter cuts are
        the same every time, if it is a Keras layer.
        """
        # The queries evaluated so far, on all replicas.
        number = self._accuracy.count * distribution.num_replicas()
        return self.step_logs(
            *self.losses_of_views(*self.fixed_views(data, number))
        )

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
            loss, loss_weights, metrics, weighted_metrics: not taken: the method
                has its loss, and `contrastive_accuracy` is measured beside it.
            kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: if another loss or other metrics are given, or
                gradients cannot be accumulated.
        """
        keras_arguments.refuse(
            f"`{type(self).__name__}` computes its own loss and accuracy. "
            "Leave it out, and use callbacks to measure more, such as "
            "`KNNMonitor`.",
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
            x: images (N, H, W, C), or a pair of views; see `fit`.
            y: ignored labels.
            sample_weight, class_weight: not taken.
            return_dict: whether to return a dict.

        Returns:
            The loss in nats and the contrastive accuracy, or a dict of them.

        Raises:
            ValueError: if the batch cannot be trained on.
        """
        keras_arguments.refuse_weights(class_weight, sample_weight)
        batch = inputs.single_batch(x, self.distribute_strategy, self.pixels)
        update = self._momentum_update
        with self._readable_errors():
            if self.compiled:
                self._prepare()
                update.set_model(self)
                update.on_train_begin()
            logs = super().train_on_batch(batch, return_dict=return_dict)
            self.statistics_differ = True
            update.on_train_batch_end(0)
        return logs

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """What `evaluate` returns, of one batch."""
        keras_arguments.refuse_weights(sample_weight=sample_weight)
        batch = inputs.single_batch(x, self.distribute_strategy, self.pixels)
        self.average_statistics()
        self._retrace_if_changed()
        with self._readable_errors():
            return super().test_on_batch(batch, return_dict=return_dict)

    def _prepare(self):
        """What there is to do before a step."""
        self._retrace_if_changed()
        self._build_optimizer()

    def _retrace_if_changed(self):
        # Keras keeps the traced step until `compile`, whatever has been set.
        now = self.traced_settings()
        # Of layers `==` asks whether they are the same.
        if self._traced_with is None or now != self._traced_with():
            self.train_function = self.test_function = None
            # A function, or Keras would take the augmenter for another layer.
            self._traced_with = lambda: now

    def check_frozen(self):
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
        self.check_frozen()
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

    @contextlib.contextmanager
    def _readable_errors(self):
        with (
            distribution.readable_worker_errors(self.distribute_strategy),
            step_errors.readable_file_errors(),
            step_errors.readable_size_errors(),
        ):
            yield
