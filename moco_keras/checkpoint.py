"""Saving a training, and going on with it."""

import os

import keras
import tensorflow as tf

from moco_keras import distribution


class Checkpoint(keras.callbacks.Callback):
    """Saves a training after every epoch; `fit` goes on from what is saved.

    It holds the weights of both encoders with their moving statistics, the
    queue, the optimiser and all random states, so that a training on arrays
    that goes on gives the numbers of one that was never interrupted. The last
    two are kept. Put it last in the list of callbacks. Every one of many
    workers needs it; the chief alone writes and reads, and the others get what
    it has read.

    Args:
        folder: where to save. A training that was saved there goes on. Only
            the chief's counts.

    Raises:
        ValueError: in `fit`, if what is saved is of another model, or the
            chief has no folder.

    Example:
        >>> model.fit(images, epochs=200, callbacks=[Checkpoint("run")])
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def restore(self, model):
        """Gives a compiled `MoCo` what was saved.

        Returns:
            How many epochs it has been trained, 0 where nothing is saved.
        """
        self._epochs = tf.Variable(0, dtype="int64")
        self._strategy = model.distribute_strategy
        with self._strategy.scope():
            model.optimizer.build(model.trainable_variables)
        unsaved = {id(v) for v in model.metrics_variables}
        variables = [
            v
            for v in (*model.variables, *model.optimizer.variables)
            if id(v) not in unsaved
        ]
        if distribution.is_chief(self._strategy):
            if not isinstance(self.folder, (str, os.PathLike)):
                raise ValueError(
                    "`folder` must be a path, on the chief of many workers. "
                    f"Received: folder={self.folder!r}."
                )
            named = {str(i): v.value for i, v in enumerate(variables)}
            self._manager = tf.train.CheckpointManager(
                tf.train.Checkpoint(epochs=self._epochs, **named),
                str(self.folder),
                max_to_keep=2,
            )
            self._read()
        distribution.broadcast(variables, self._strategy)
        return distribution.of_chief(self._epochs, self._strategy)

    def _read(self):
        path = self._manager.latest_checkpoint
        if path is None:
            return
        try:
            status = self._manager.checkpoint.restore(path)
            status.assert_consumed().expect_partial()
        except (ValueError, AssertionError, tf.errors.OpError) as error:
            raise ValueError(
                "A training can go on only with the model and the optimiser "
                f"that it was saved from. Received: {path}, which differs "
                f"({str(error).splitlines()[0]}). Build the same, or choose "
                "another folder."
            ) from error

    def on_epoch_end(self, epoch, logs=None):
        if distribution.is_chief(self._strategy):
            self._epochs.assign(epoch + 1)
            self._manager.save(epoch + 1)
