"""Saving a training run, and resuming it as if nothing had happened."""

import concurrent.futures
import contextlib
import os
import re
import signal
import sys
import time

import keras
import tensorflow as tf
from keras import ops

from moco_keras import distribution
from moco_keras.models import model_state
from moco_keras.system import signals
from moco_keras.training.checkpoint_files import CheckpointFiles
from moco_keras.training.resume import Position

_NO_POSITION = Position(-1)  # where nothing is saved
_STOPPING = "Stopping after this step; a second signal (Ctrl-C) stops at once."


class Checkpoint(keras.callbacks.Callback):
    """Saves a training run on the way; `fit` resumes from what is saved.

    A checkpoint holds the weights of both encoders with their moving
    statistics, the queue, the optimizer, all random states, and how far the
    epoch has come: a run that resumes gives the numbers of one that was never
    interrupted, to the bit. It is also saved at the end of the run, and when
    the process gets SIGTERM or Ctrl-C: the step is finished, the run saved, and
    `fit` ends with `SystemExit` (code 143) or `KeyboardInterrupt`. A second
    signal ends it at once, and what was saved before remains.

    A thread writes while the training continues. The newest three checkpoints
    are kept, in TensorFlow's format, with checksums; a damaged one is skipped.
    Each of many workers needs this callback; the chief alone writes and reads,
    and the others get what it has read.

    Args:
        folder: where to save. A run that was saved there resumes. Of many
            workers, the chief's folder counts.
        every: how often, "500 steps" or "10 minutes".

    Raises:
        ValueError: if `every` cannot be read; in `fit`, if what is saved is of
            another model, or of an epoch of other batches, or all of it is
            damaged, or the chief has no folder.
        OSError: in `fit`, if the folder cannot be written to.

    Example:
        >>> model.fit(images, epochs=200, callbacks=[Checkpoint("run")])
    """

    def __init__(self, folder, every="1 minute"):
        super().__init__()
        self.folder = folder
        self._every, self._unit = parse_interval(every)
        self._signal = self._writing = self._files = None

    def restore(self, model, sizes):
        """Gives a compiled model what was saved.

        Args:
            model: a `PretrainingModel`.
            sizes: of a batch, of the data and of an epoch: numbers of images,
                of images, and of batches; None where it is not known.

        Returns:
            The `Position` that the training run is at, and the number of steps
            that the model had taken when its data began; or None and the
            present number, where nothing is saved.

        Raises:
            ValueError: if it was interrupted within an epoch of other sizes.
        """
        self._sizes = [-1 if size is None else size for size in sizes]
        strategy = model.distribute_strategy
        self._strategy = strategy
        own = [*model.statistics, *model.metrics_variables]
        self._replica_values = distribution.ReplicaValues(own, strategy)
        own = {id(v) for v in own}
        self._shared_variables = [
            v
            for v in (*model.variables, *model.optimizer.variables)
            if id(v) not in own
        ]
        self._steps = self._began = int(ops.convert_to_numpy(model.steps))
        self._restored = None  # see `restore_metrics`
        state = self._state(_NO_POSITION)
        if distribution.is_chief(strategy):
            if not isinstance(self.folder, (str, os.PathLike)):
                raise ValueError(
                    "`folder` must be a path, on the chief of many workers. "
                    f"Received: folder={self.folder!r}."
                )
            self._files = CheckpointFiles(self.folder)
            state = self._newest(state)
        state = distribution.broadcast(state, strategy)
        steps, epoch, batch, began, *sizes = map(int, state["position"])
        position = Position(epoch, batch)
        if position == _NO_POSITION:
            return None, self._began
        if sizes == self._sizes:
            self._began = began
        elif batch:
            self._refuse_sizes(sizes, position)
        else:  # a new epoch, which begins a new pass over the data
            self._began = steps
        self._steps = steps
        for i, variable in enumerate(self._shared_variables):
            variable.assign(state[f"variable/{i:04d}"])
        self._replica_values.assign(state["of_replicas"])
        for layer in model.layers:  # what a `Normalization` derives, and others
            model_state.copy_state(layer, layer)
        # Copying gave all replicas what the first one has.
        self._replica_values.assign(state["of_replicas"])
        self._saved = state["of_replicas"]
        return position, self._began

    def restore_metrics(self):
        """Restores an epoch's metrics, too, when Keras has set them back."""
        self._restored = self._saved

    def _refuse_sizes(self, sizes, position):
        names = ("batch_size", "images", "batches in an epoch")
        changes = [
            f"{name}: {_known(now)} (it began with {_known(before)})"
            for name, before, now in zip(names, sizes, self._sizes, strict=True)
            if before != now
        ]
        raise ValueError(
            "An epoch can resume only with the batches that it began with. "
            f"Received, for epoch {position.epoch + 1} of {self.folder}, which "
            f"was interrupted after {position.batch} batches: "
            f"{', '.join(changes)}. Give the same again, at least until that "
            "epoch has ended, or choose another folder. Nothing was changed."
        )

    def _state(self, position):
        """All that is saved: tensors by name."""
        numbers = [self._steps, *position, self._began, *self._sizes]
        state = {
            "position": tf.constant(numbers, "int64"),
            "of_replicas": self._replica_values.values(),
        }
        for i, variable in enumerate(self._shared_variables):
            # What it is now: Keras's `convert_to_tensor` is the variable.
            state[f"variable/{i:04d}"] = tf.identity(variable.value)
        return state

    def _newest(self, state):
        """What was saved last; the state itself where nothing was."""
        saved = self._files.newest()
        if saved is None:
            return state
        if "of_replicas" in saved:
            saved["of_replicas"] = distribution.match_replicas(
                saved["of_replicas"], len(state["of_replicas"])
            )
        saved = {name: tf.convert_to_tensor(x) for name, x in saved.items()}
        kinds, expected = (
            {(name, x.dtype, *x.shape) for name, x in tensors.items()}
            for tensors in (saved, state)
        )
        if kinds != expected:
            raise ValueError(
                "A training run can resume only with the model and the "
                f"optimizer that it was saved from. Received, in {self.folder}"
                f": {len(kinds - expected)} tensors that differ. Build the "
                "same, or choose another folder."
            )
        return {name: saved[name] for name in state}

    @contextlib.contextmanager
    def running(self):
        """Answers signals, and ends once all is written."""

        def remember(number):
            self._signal = number

        self._signal = self._writing = None
        with (
            # Outside, as it may wait for longer than a second signal has.
            concurrent.futures.ThreadPoolExecutor(1) as self._writer,
            signals.answered(remember, _STOPPING, self._last_words),
        ):
            yield

    def _last_words(self):
        if self._writing is not None:  # which may soon be there
            concurrent.futures.wait([self._writing], timeout=0.5)
        latest = self._files and self._files.latest()
        if latest is None:
            return "Stopped at once. Nothing is saved yet."
        return (
            f"Stopped at once. What was saved before, {latest}, is there. The "
            "same training run resumes from it."
        )

    def on_train_begin(self, logs=None):
        self._saved_at = time.monotonic()
        self._ask_at, self._asked = self._steps, (self._steps, self._saved_at)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self._restored is not None:
            self._replica_values.assign(self._restored)
            self._restored = None

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        # After the last one, the epoch's end is to be seen first.
        if batch + 1 != self.params["steps"]:
            self._save_if_due(Position(self._epoch, batch + 1))

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params["epochs"] or self.model.stop_training
        self._save_if_due(Position(epoch + 1), last)

    def on_train_end(self, logs=None):
        self._wait()

    def _save_if_due(self, position, last=False):
        if self._writing is not None and self._writing.done():
            self._wait()  # raises what went wrong
        stop, due = self._signal is not None, self._due()
        if distribution.is_multi_worker(self._strategy):
            stop, due = self._agree_with_workers(stop, due)
        if stop or due or last:
            self._save(position)
        if stop:
            self._stop(position)

    def _due(self):
        if self._unit == "step":
            return self._steps % self._every == 0
        return time.monotonic() - self._saved_at >= 60 * self._every

    def _agree_with_workers(self, stop, due):
        """Whether any worker is to stop, and whether one is due to save.

        Asked about once a second, because the answer blocks until the step is
        done. All ask after the same steps.
        """
        if self._steps < self._ask_at:
            return False, due and self._unit == "step"  # which all know
        now = time.monotonic()
        pace = (self._steps - self._asked[0]) / (now - self._asked[1])
        self._asked = self._steps, now
        stop, due, paces, workers = distribution.all_reduce_sum(
            [stop, due, max(1, int(pace)), 1], self._strategy
        )
        self._ask_at = self._steps + paces // workers
        return stop, due

    def _save(self, position):
        self._wait()
        state = self._state(position)
        self._saved_at = time.monotonic()
        if self._files is not None:
            self._writing = self._writer.submit(
                self._files.write, self._steps, state
            )

    def _wait(self):
        if self._writing is not None:
            self._writing.result()

    def _stop(self, position):
        self._wait()
        number = self._signal or signal.SIGTERM  # of another worker
        if self._files is not None:
            print(
                f"\nStopped by {signal.Signals(number).name}, and saved after "
                f"{position.epoch} epochs and {position.batch} steps in "
                f"{self.folder}. The same training run resumes from there.",
                file=sys.stderr,
            )
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def _known(number):
    return "unknown" if number < 0 else number


def parse_interval(every):
    """Reads "500 steps" or "10 minutes": the number, and the unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(step|minute)s?", str(every))
    number = float(match[1]) if match else 0
    if not number or (match[2] == "step" and number % 1):
        raise ValueError(
            "Checkpoints must be a number of steps or minutes apart, for "
            f'example "500 steps" or "10 minutes". Received: {every!r}.'
        )
    return number, match[2]
