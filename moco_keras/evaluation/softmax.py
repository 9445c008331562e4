"""Regularized softmax regression, by Newton's method."""

import numpy as np

_GAP = 1e-6  # to the least loss, as a fraction of it, where it may end
_SLOPE = 1e-6  # the greatest derivative where it may end
_LEFT = 0.1  # part of the gradient that a step may leave
_MOST = 1000  # steps; fewer than ten are usual


class SoftmaxRegression:
    """The softmax regressions of one set of rows, for any regularization.

    `solve` minimizes

        mean_n cross_entropy(W f_n + b, label_n) + |W|^2 / (2 C N)

    over W, (K, D), and b, (K,), in float64. For two classes W is (1, D) and b
    is (1,), the logit of the second class, and that of the first is 0. Both
    are as in scikit-learn.

    Two things make it fast where features are correlated and C is large. Rows
    are centered, which only changes b, and rotated to their principal axes,
    which changes neither |W| nor the optimum. There the Hessian is close to its
    diagonal, which preconditions the conjugate gradients of each Newton step.

    Args:
        rows: float (N, D).
        labels: int (N,), from 0 to K - 1, of two classes or more.

    Reference:
        Section 7.1 of Nocedal and Wright, Numerical Optimization, 2006.
    """

    def __init__(self, rows, labels):
        rows = rows.astype("float64")
        self._center = rows.mean(axis=0)
        # rows - center = left * lengths @ axes
        left, lengths, self._axes = np.linalg.svd(
            rows - self._center, full_matrices=False
        )
        ones = np.ones((len(rows), 1))  # for the biases
        self._inputs = np.hstack([left * lengths, ones])
        self._squares = self._inputs**2
        self._targets = np.eye(labels.max() + 1)[labels]
        self._with_weights = slice(
            1 if self._targets.shape[1] == 2 else 0, None
        )

    @property
    def zeros(self):
        """Weights to begin with."""
        columns = self._targets[:, self._with_weights].shape[1]
        return np.zeros((self._inputs.shape[1], columns))

    def solve(self, C, weights):
        """Minimizes, beginning with `weights`, and returns the best ones."""
        penalty = np.full((len(weights), 1), 1 / (C * len(self._inputs)))
        penalty[-1] = 0  # of the biases
        logits = self._logits(weights)
        loss = self._loss(logits, weights, penalty)
        for _ in range(_MOST):
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            gradient = self._mean(p - self._targets) + penalty * weights
            diagonal = self._mean(p * (1 - p), self._squares) + penalty
            # Newton's estimate of twice the gap to the least loss.
            gap = np.sum(gradient**2 / diagonal)
            if gap <= _GAP * loss and np.abs(gradient).max() <= _SLOPE:
                return weights
            step = self._newton_step(gradient, diagonal, p, penalty)
            change = self._logits(step)
            size = 1.0
            while True:
                new = weights + size * step
                new_loss = self._loss(logits + size * change, new, penalty)
                expected = size * np.vdot(gradient, step)
                # The second term is for rounding.
                if new_loss <= loss + 1e-4 * expected + 1e-14:
                    break
                size /= 2
            weights, loss = new, new_loss
            logits = logits + size * change
        raise ValueError(
            "Softmax regression must converge. Received features for which "
            f"{_MOST} steps of Newton's method were too few, at C={C:g}. Lower "
            "`C`."
        )

    def coefficients(self, weights):
        """Returns W and b for the rows as they were given."""
        W = weights[:-1].T @ self._axes
        b = weights[-1] - W @ self._center
        # Only differences between the logits of three or more classes count.
        return W, b - b.mean() if len(b) > 1 else b

    def _logits(self, weights):
        logits = np.zeros(self._targets.shape)
        logits[:, self._with_weights] = self._inputs @ weights
        return logits

    def _loss(self, logits, weights, penalty):
        top = logits.max(axis=1)
        total = np.exp(logits - top[:, None]).sum(axis=1)
        right = np.einsum("nk,nk->n", logits, self._targets)
        loss = np.mean(np.log(total) + top - right)
        return loss + np.sum(penalty * weights**2) / 2

    def _mean(self, of_logits, inputs=None):
        """Derivatives by the weights, of those by the logits."""
        inputs = self._inputs if inputs is None else inputs
        return inputs.T @ of_logits[:, self._with_weights] / len(inputs)

    def _newton_step(self, gradient, diagonal, p, penalty):
        """Conjugate gradients, preconditioned by the Hessian's diagonal."""
        step = np.zeros_like(gradient)
        residual = -gradient
        scaled = direction = residual / diagonal
        size = first = np.vdot(residual, scaled)
        while size > _LEFT**2 * first:
            change = p * self._logits(direction)
            change -= p * change.sum(axis=1, keepdims=True)
            curved = self._mean(change) + penalty * direction
            length = size / np.vdot(direction, curved)
            step += length * direction
            residual = residual - length * curved
            scaled = residual / diagonal
            size, before = np.vdot(residual, scaled), size
            direction = scaled + size / before * direction
        return step
