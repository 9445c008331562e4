"""What the epochs of a run logged, in memory and in a CSV file."""

import csv

import keras

from moco_keras.recipes import _run_files


class History(keras.callbacks.Callback):
    """Keeps what the epochs logged, in `epochs` and in a CSV file.

    Keras's `CSVLogger` mixes up the columns when a run is resumed.

    Args:
        path: of the file, which is read where it exists.

    Attributes:
        epochs: a dict for each.
        steps: how many this process has taken.

    Raises:
        FileNotFoundError: if the file of a run that is resumed is gone.
        ValueError: if the file is damaged.
    """

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.epochs, self.steps = [], 0
        if path.exists():
            try:
                with path.open(newline="") as file:
                    self.epochs = [
                        {k: _number(v) for k, v in row.items() if v}
                        for row in csv.DictReader(file)
                    ]
            except (ValueError, TypeError, AttributeError, csv.Error) as error:
                raise ValueError(
                    f"{path} must hold the earlier epochs, as the run wrote "
                    f"them. Received a damaged file: {error}. Bring it back "
                    "from a copy, or begin in another folder."
                ) from error

    def on_epoch_begin(self, epoch, logs=None):
        if len(self.epochs) < epoch:
            raise FileNotFoundError(
                f"{self.path} must hold the {epoch} earlier epochs, for "
                f"metrics.json. Received {len(self.epochs)}. Bring the file "
                "back, or begin in another folder."
            )
        self.epochs = self.epochs[:epoch]  # what a checkpoint had not seen

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({"epoch": epoch + 1, **logs})
        _run_files.write_csv(self.path, self.epochs)


def _number(text):
    return int(text) if text.isdigit() else float(text)
