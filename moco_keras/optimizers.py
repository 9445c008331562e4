"""The optimiser of the paper's code."""

import keras
from keras import ops

from moco_keras import arguments


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

    Reference:
        Section 3.3 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """

    def __init__(
        self, learning_rate=0.03, momentum=0.9, l2=1e-4, name="sgd", **kwargs
    ):
        if not callable(learning_rate):
            learning_rate = arguments.real(learning_rate=learning_rate)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        momentum = arguments.real(momentum=momentum)
        l2 = arguments.real(l2=l2)
        if not 0 <= momentum < 1:
            raise ValueError(
                "`momentum` of the optimizer must be in [0, 1). "
                f"Received: momentum={momentum}."
            )
        if l2 < 0:
            raise ValueError(f"`l2` must not be negative. Received: l2={l2}.")
        self.momentum = momentum
        self.l2 = l2

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._buffers = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        buffer = self._buffers[self._get_variable_index(variable)]
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype) + self.l2 * variable
        velocity = self.momentum * buffer + gradient
        self.assign(buffer, velocity)
        self.assign_sub(variable, learning_rate * velocity)

    def get_config(self):
        own = {"momentum": self.momentum, "l2": self.l2}
        return {**super().get_config(), **own}
