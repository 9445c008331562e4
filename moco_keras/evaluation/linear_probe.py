"""Logistic regression on frozen features."""

import warnings

import numpy as np
import threadpoolctl

from moco_keras import arguments
from moco_keras.evaluation import features as feature_rows
from moco_keras.evaluation import knn

# As in DINOv2: the exponents of C, from strong regularization to weak.
GRID = tuple(float(C) for C in np.logspace(-6, 5, 45))
_WITHOUT_HELD_OUT = 100.0  # C where no label can be spared to choose it
_STRENGTH = arguments.Kind(
    "a number between 1e-9 and 1e9", lambda x: 1e-9 <= x <= 1e9
)


def fit(features, labels, C=None, *, seed=0):
    """Fits an L2-regularized logistic regression to frozen features.

    It minimizes |W|^2 / 2 + C sum_n cross_entropy(W f_n + b, label_n) over rows
    f_n that are scaled to length 1. For two classes, as in scikit-learn, W is
    one row, the logit of the second class, and that of the first is 0.

    By default `C` is chosen from the 45 values of `GRID`, from 1e-6 to 1e5: a
    tenth of each class that has two images or more, but at least one image, is
    held out, and the value with the highest accuracy on it wins; among equals
    that with the lowest loss. The regression is then fitted to all images. If
    no class has two images, C is 100.

    The result depends on the arguments alone. It is computed on one core:
    several threads would wait for each other at every step, on a busy machine
    for most of the time. To use more cores, run several fits at once, each in
    its own process.

    Args:
        features: float (N, D), rows of any length: those of
            `features.extract`, of `MoCo.predict`, or both side by side.
        labels: int (N,) or (N, 1), from 0, of two classes or more.
        C: inverse strength of the regularization, from 1e-9 to 1e9.
        seed: of the choice of what is held out.

    Returns:
        A fitted `sklearn.linear_model.LogisticRegression`; its `C` is what was
        chosen. Its methods take rows of length 1: `features.unit_rows`.

    Raises:
        ValueError: if a feature is not finite, labels are not class numbers, or
            they are all of one class, or `C` or `seed` is out of range.

    Reference:
        Section 7.1 of [Oquab et al., 2023](https://arxiv.org/abs/2304.07193),
        and its code, from which the grid and the tenth come.
    """
    labels = knn.check_labels(len(features), labels=labels)
    if len(np.unique(labels)) < 2:
        raise ValueError(
            "`labels` must be of two classes or more. Received: all are "
            f"{labels[0]}. Label images of another class, too."
        )
    feature_rows.check_finite(features=features)
    rows = feature_rows.unit_rows(features).astype("float64")
    seed = arguments.whole(arguments.SEED, seed=seed)
    if C is not None:
        C = arguments.real(_STRENGTH, C=C)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        return _fitted(C or _choose(rows, labels, seed), rows, labels)


def accuracy(bank, bank_labels, queries, labels, C=None, *, seed=0):
    """Fraction of `queries` that a regression on a bank classifies right.

    Args:
        bank, queries: float (B, D) and (Q, D), rows of any length.
        bank_labels, labels: int (B,) and (Q,), or (B, 1) and (Q, 1), from 0. A
            label that the bank lacks is never predicted.
        C, seed: as in `fit`.
    """
    labels = knn.check_labels(len(queries), labels=labels)
    feature_rows.check_finite(queries=queries)
    regression = fit(bank, bank_labels, C, seed=seed)
    return float(regression.score(feature_rows.unit_rows(queries), labels))


def _fitted(C, rows, labels):
    return _fit(_regression(C=C), rows, labels)


def _choose(rows, labels, seed):
    """The C with the best regression on labels that are held out."""
    held_out = _held_out(labels, np.random.default_rng(seed))
    if not held_out.any():
        return _WITHOUT_HELD_OUT
    used = rows[~held_out], labels[~held_out]
    tests = rows[held_out], labels[held_out]
    # Each fit begins at the optimum of the C before.
    regression = _regression(warm_start=True)
    scores = []
    for C in GRID:
        regression.C = C
        scores.append(_score(_fit(regression, *used), *tests))
    return GRID[scores.index(max(scores))]


def _regression(**settings):
    from sklearn.linear_model import LogisticRegression  # slow to import

    # With large C, lbfgs takes several times as long as Newton's method. No
    # derivative of the mean loss is above `tol` in the end.
    return LogisticRegression(
        solver="newton-cg", tol=1e-6, max_iter=1000, **settings
    )


def _fit(regression, rows, labels):
    with warnings.catch_warnings():
        # With a label or two for each class they are few, but classes.
        warnings.filterwarnings("ignore", "The number of unique classes")
        return regression.fit(rows, labels)


def _held_out(labels, rng):
    """Marks a tenth of each class, at least one image of two or more."""
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            held_out[rows[: max(1, len(rows) // 10)]] = True
    return held_out


def _score(regression, rows, labels):
    """Accuracy, and then minus the loss: the higher, the better."""
    log_p = regression.predict_log_proba(rows)
    numbers = np.searchsorted(regression.classes_, labels)
    accuracy = np.mean(np.argmax(log_p, axis=1) == numbers)
    return accuracy, np.mean(log_p[np.arange(len(labels)), numbers])
