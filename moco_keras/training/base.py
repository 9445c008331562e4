"""What every method of pre-training needs of Keras's `fit`."""

import contextlib
import functools
import sys
import warnings

import tensorflow as tf
from keras import ops

from moco_keras import arguments, distribution, keras_private
from moco_keras.data import batching, inputs
from moco_keras.distribution import accelerators
from moco_keras.training import resume, run_callbacks
from moco_keras.training.keras_arguments import check_counts, refuse_weights
from moco_keras.training.steps import SteppedModel


class PretrainingModel(keras_private.NoSymbolicBuild, SteppedModel):
    """Trains a query encoder, which a key encoder follows, on views of images.

    A method is a subclass: its constructor, which ends with `add_state`, its
    `train_step`, and `losses_of_views` for held-out images. All else of a
    training run is here and in the classes below: data, callbacks, resuming,
    evaluation, steps on single batches.

    Args and errors: as in `SteppedModel`.
    """

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
            x: images (N, H, W, C), uint8, or what `value_range` of
                `build_encoder` says, as an array or a batched
                `tf.data.Dataset` of images, of (image, label) or of {"image",
                "label"}; labels are ignored. Or pairs of views, float (N, H, W,
                C) each, as `(im_q, im_k)` or a data set of such tuples, which
                are used as they are. Or what `data.two_views` returns.
            y: ignored labels.
            batch_size: images in a batch of an array, by default 32. The last
                batch is dropped when it is not full.
            epochs, verbose, initial_epoch: as in `keras.Model.fit`.
            callbacks: as in `keras.Model.fit`. A `MomentumUpdate` is added
                where there is none. A `Checkpoint` among them resumes the
                training run that it finds saved, within an epoch too.
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
                together, or a saved run was interrupted in an epoch of other
                batches.
            ConnectionError: if another worker is lost.
            FileNotFoundError: if an image file is missing when it is read.
        """
        refuse_weights(class_weight, sample_weight)
        epochs, batch_size, steps_per_epoch = check_counts(
            epochs=epochs,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
        )
        validation_steps, validation_batch_size = check_counts(
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
        )
        initial_epoch = arguments.whole(
            arguments.INDEX, initial_epoch=initial_epoch
        )
        if not isinstance(validation_freq, (list, tuple)):
            (validation_freq,) = check_counts(validation_freq=validation_freq)
        accelerators.warn_of_unused_gpu()
        strategy = self.distribute_strategy
        callbacks, checkpoint = run_callbacks.arrange(
            callbacks, self._momentum_update, verbose
        )
        if validation_split and validation_data is None:
            x, validation_data = inputs.split(x, validation_split, self.pixels)
        batches = inputs.training_batches(
            x, batch_size, strategy, self.pixels, steps_per_epoch
        )
        self.image_dtype = batches.image_dtype or self.image_dtype
        if validation_data is not None:
            validation_data, validation_steps = inputs.evaluation_batches(
                validation_data,
                validation_batch_size
                or inputs.size_for(validation_data, batches.batch_size),
                strategy,
                self.pixels,
                validation_steps=validation_steps,
            )
        steps = steps_per_epoch or batches.steps
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._readable_errors())
            start, began = resume.Position(initial_epoch), self._steps_taken()
            if self.compiled:
                self._prepare()
                if checkpoint is not None:
                    stack.enter_context(checkpoint.running())
                    sizes = batches.batch_size, batches.num_images, steps
                    saved, began = checkpoint.restore(self, sizes)
                    start = max(start, saved or start)
                self._say_what_is_left(start.epoch, epochs, steps or 1)
            read = functools.partial(self._read, batches, shuffle, began)
            is_generator = not (batches.steps or isinstance(x, tf.data.Dataset))
            if start.batch and is_generator:
                start = resume.Position(start.epoch)  # it begins anew
            if start.batch and batching.has_ended(read(start.batch)):
                start = resume.Position(start.epoch + 1)
            stretches = resume.stretches(start, epochs, steps)
            if stretches[0].start.batch:
                callbacks = resume.ResumedCallbacks(
                    callbacks,
                    start.batch,
                    model=self,
                    epochs=epochs,
                    steps=steps,
                    verbose=verbose,
                )
                stack.enter_context(callbacks.one_run())
                stack.enter_context(resume.finalized_once(self))
                checkpoint.restore_metrics()
            for stretch in stretches:
                history = super().fit(
                    read(stretch.start.batch),
                    epochs=stretch.epochs,
                    verbose=verbose,
                    callbacks=callbacks,
                    validation_data=validation_data,
                    shuffle=False,  # `training_batches` has shuffled arrays
                    initial_epoch=stretch.start.epoch,
                    steps_per_epoch=stretch.steps,
                    validation_steps=validation_steps,
                    validation_freq=validation_freq,
                )
                if self.stop_training:
                    break
            return history

    def _read(self, batches, shuffle, began, batch):
        """The batches from one of an epoch on; see `batching.Batches`."""
        # All processes have the same state.
        seed = int(ops.convert_to_numpy(self._shuffle_seed.state)[0])
        taken = self._steps_taken() - began
        return batches.read(seed, shuffle, began, taken, batch)

    def _steps_taken(self):
        return int(ops.convert_to_numpy(self.steps))

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
        refuse_weights(sample_weight=sample_weight)
        strategy = self.distribute_strategy
        # Those of `fit` are batches already.
        if not keras_private.called_by_fit(kwargs):
            batch_size, steps = check_counts(batch_size=batch_size, steps=steps)
            x, steps = inputs.evaluation_batches(
                x, batch_size, strategy, self.pixels, steps=steps
            )
        self.average_statistics()
        self._retrace_if_changed()
        with self._readable_errors():
            return super().evaluate(
                x,
                verbose=verbose,
                steps=steps,
                callbacks=callbacks,
                return_dict=return_dict,
                **kwargs,
            )

    def _say_what_is_left(self, done, epochs, steps):
        if done < epochs:
            self._warn_of_a_schedule_that_has_ended(steps)
        elif distribution.is_chief(self.distribute_strategy):
            print(
                f"\nNothing is left to train: {done} epochs are done. "
                f"Received: epochs={epochs}. To train further, give more.",
                file=sys.stderr,
            )

    def _warn_of_a_schedule_that_has_ended(self, steps):
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        schedule = keras_private.learning_rate_schedule(optimizer)
        if schedule is None:
            return
        applied = keras_private.num_applied(optimizer)
        done = int(ops.convert_to_numpy(applied))
        # A warm-up begins at 0, too.
        if all(float(schedule(done + i)) == 0 for i in (0, 1, steps)):
            warnings.warn(
                f"The learning rate stays 0: {done} steps are done, and the "
                "optimizer's schedule has ended. No weight will change. To "
                "train further, call `compile` with a new optimizer.",
                stacklevel=4,
            )
