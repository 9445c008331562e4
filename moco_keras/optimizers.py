"""The optimizer of the paper's code."""

import math

import keras
from keras import ops

from moco_keras import arguments, keras_private

_BELOW_ONE = arguments.Kind("a number in [0, 1)", lambda x: 0 <= x < 1)


@keras.saving.register_keras_serializable(package="moco_keras")
class SGD(keras.optimizers.Optimizer):
    """SGD whose weight decay is L2 added to the gradient, as in PyTorch.

    v <- momentum v + (g + l2 w); w <- w - learning_rate v, for every parameter,
    biases and batch norm included. `keras.optimizers.SGD(weight_decay=)` is
    decoupled from the momentum buffer, about ten times weaker at the same
    number, and folds the learning rate into the buffer.

    Args:
        learning_rate: a number or a schedule.
        momentum: of the buffer v, in [0, 1).
        l2: coefficient of w in the gradient; "weight decay" in the paper.
        multipliers: by name of a layer, what the learning rate is multiplied
            by for its weights, such as {"logits": 20} in fine-tuning.

    Raises:
        ValueError: if a number is out of range, or, when it is built, a layer
            in `multipliers` has no variable that is trained.

    Reference:
        Section 3.3 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """

    def __init__(
        self,
        learning_rate=0.03,
        momentum=0.9,
        l2=1e-4,
        multipliers=None,
        name="sgd",
        **kwargs,
    ):
        if not callable(learning_rate):
            learning_rate = arguments.real(
                arguments.NOT_NEGATIVE, learning_rate=learning_rate
            )
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = arguments.real(_BELOW_ONE, momentum=momentum)
        self.l2 = arguments.real(arguments.NOT_NEGATIVE, l2=l2)
        self.multipliers = {
            name: arguments.real(arguments.NOT_NEGATIVE, multipliers=value)
            for name, value in (multipliers or {}).items()
        }

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._buffers = self.add_optimizer_variables(variables, "momentum")
        layers = [variable.path.split("/")[:-1] for variable in variables]
        trained = set().union(*layers)
        unknown = self.multipliers.keys() - trained
        if unknown:
            raise ValueError(
                "`multipliers` must be of layers that are trained. Received: "
                f"{', '.join(sorted(unknown))}. Layers that are trained: "
                f"{', '.join(sorted(trained))}."
            )
        self._multipliers = [
            math.prod(self.multipliers.get(name, 1.0) for name in names)
            for names in layers
        ]

    def update_step(self, gradient, variable, learning_rate):
        index = keras_private.variable_index(self, variable)
        buffer = self._buffers[index]
        learning_rate = ops.cast(learning_rate, variable.dtype)
        learning_rate *= self._multipliers[index]
        gradient = ops.cast(gradient, variable.dtype) + self.l2 * variable
        velocity = self.momentum * buffer + gradient
        self.assign(buffer, velocity)
        self.assign_sub(variable, learning_rate * velocity)

    def get_config(self):
        own = {
            "momentum": self.momentum,
            "l2": self.l2,
            "multipliers": self.multipliers,
        }
        return {**super().get_config(), **own}
