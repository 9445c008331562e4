"""The callback that verifies that a frozen backbone stays frozen."""

import keras
from keras import ops

from moco_keras.models import classifier


class CheckFrozen(keras.callbacks.Callback):
    """Ends the training of a linear classifier if anything else changes.

    After each epoch it compares every variable outside of the layer "logits"
    with its value at the beginning, bit for bit: weights, batch norm's moving
    statistics, random states. It costs as much memory as the backbone.

    Raises:
        ValueError: when training starts, if the model has no layer "logits";
            after an epoch, naming the variables that changed.

    Reference:
        The check of the linear classification in the code of
        [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """

    def on_train_begin(self, logs=None):
        names = [layer.name for layer in self.model.layers]
        if classifier.HEAD not in names:
            raise ValueError(
                "`CheckFrozen` must have a model with a layer called "
                f"{classifier.HEAD!r}, as `build_classifier` makes it. "
                "Received one that ends with the layers "
                f"{', '.join(names[-3:])}."
            )
        self._before = [_bytes(variable) for variable in self._frozen()]

    def _frozen(self):
        """The variables that must not change."""
        return [
            variable
            for layer in self.model.layers
            if layer.name != classifier.HEAD
            for variable in layer.variables
        ]

    def on_epoch_end(self, epoch, logs=None):
        changed = [
            variable.path
            for variable, before in zip(
                self._frozen(), self._before, strict=True
            )
            if _bytes(variable) != before
        ]
        if changed:
            more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(
                "The backbone of a linear classifier must stay as it is. "
                f"Received, after epoch {epoch + 1}, other values of "
                f"{', '.join(changed[:3])}{more}. Build the model by "
                '`build_classifier(..., trainable="head")`, and leave its '
                "layers frozen."
            )


def _bytes(variable):
    return ops.convert_to_numpy(variable).tobytes()
