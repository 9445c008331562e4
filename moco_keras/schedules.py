"""Learning-rate schedules of the paper's code, serializable with the model."""

import math

import keras
from keras import ops

from moco_keras import arguments


def step_schedule(learning_rate, steps_per_epoch, milestones, factor=0.1):
    """Multiplies the rate by `factor` at the start of each milestone epoch.

    Args:
        learning_rate: the rate of the first epochs.
        steps_per_epoch: optimizer steps in an epoch.
        milestones: epochs counted from 0, ascending; (120, 160) in MoCo v1.
        factor: multiplier at each milestone.

    Returns:
        A `keras.optimizers.schedules.PiecewiseConstantDecay`.
    """
    learning_rate = arguments.real(
        arguments.NOT_NEGATIVE, learning_rate=learning_rate
    )
    steps_per_epoch = arguments.whole(steps_per_epoch=steps_per_epoch)
    milestones = [arguments.whole(milestones=epoch) for epoch in milestones]
    factor = arguments.real(arguments.NOT_NEGATIVE, factor=factor)
    # Keras keeps a value up to and including its boundary step.
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [epoch * steps_per_epoch - 1 for epoch in milestones],
        [learning_rate * factor**i for i in range(len(milestones) + 1)],
    )


@keras.saving.register_keras_serializable(package="moco_keras")
class EpochCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Half a cosine from `learning_rate` to 0, constant within each epoch.

    The rate of epoch e, counted from 0, is
    learning_rate * (1 + cos(pi e / epochs)) / 2. Keras's `CosineDecay` changes
    every step; the paper's code changes it once an epoch.

    Args:
        learning_rate: the rate of the first epoch.
        steps_per_epoch: optimizer steps in an epoch.
        epochs: length of the training run.

    Reference:
        [Chen et al., 2020](https://arxiv.org/abs/2003.04297), section 3.
    """

    def __init__(self, learning_rate, steps_per_epoch, epochs):
        super().__init__()
        self.learning_rate = arguments.real(
            arguments.NOT_NEGATIVE, learning_rate=learning_rate
        )
        self.steps_per_epoch = arguments.whole(steps_per_epoch=steps_per_epoch)
        self.epochs = arguments.whole(epochs=epochs)

    def __call__(self, step):
        epoch = ops.floor_divide(ops.cast(step, "int64"), self.steps_per_epoch)
        left = ops.cast(ops.maximum(self.epochs - epoch, 0), "float32")
        # The sine squared is (1 + cos) / 2 of what is done, without the
        # cancellation that costs float32 four digits in the last epochs.
        wave = ops.sin(0.5 * math.pi * left / self.epochs)
        return self.learning_rate * ops.square(wave)

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": self.epochs,
        }
