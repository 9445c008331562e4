"""What says, without labels, whether a contrastive encoder is healthy.

NumPy arrays in, numbers out. `HealthMonitor` measures all of these during
training, and docs/health.md says how to read them.
"""

import hashlib
import math

import numpy as np

PREFIX = "health_"  # of what `HealthMonitor` logs
_QUANTILES = 5, 50, 95  # in percent
_NOISE = 8 / 255  # of the range of pixels, between which an image is blank


def alignment(q, k):
    """Mean squared distance between the two views of an image.

    Args:
        q, k: float (N, C), rows of length 1; `k[n]` is of the image of `q[n]`.

    Returns:
        A float in [0, 4]. It is 0 if both views of every image have the same
        vector, which is the aim, and also what a collapse gives.

    Reference:
        Section 4.1.1 of [Wang and Isola, 2020](https://arxiv.org/abs/2005.10242),
        with alpha = 2.
    """
    return float(np.square(_float64(q) - k).sum(axis=1).mean())


def uniformity(x):
    """How evenly vectors lie on the sphere.

    Args:
        x: float (N, C), rows of length 1, of different images; N >= 2.

    Returns:
        The logarithm of the mean of exp(-2 d^2) over all pairs of rows at
        distance d. It is 0 if all rows are the same; at best about
        `uniformity_limit(C)`.

    Reference:
        Section 4.1.2 of [Wang and Isola, 2020](https://arxiv.org/abs/2005.10242),
        with t = 2.
    """
    x = _float64(x)
    lengths = np.square(x).sum(axis=1)  # 1, but for the roundings of float32
    total = 0.0
    for rows in _blocks(len(x)):
        squares = lengths[rows, None] + lengths - 2 * x[rows] @ x.T
        total += np.exp(-2 * squares).sum()
    # Without the pairs of a row and itself, whose distance is 0.
    count = len(x) * (len(x) - 1)
    return float(np.log((total - len(x)) / count))


def uniformity_limit(dim):
    """What `uniformity` is for vectors that are uniform on the sphere.

    Args:
        dim: length of a vector, C; at least 2.

    Returns:
        -4 + ln of the mean of exp(4 cos), over the angles of random pairs: a
        negative float, -3.94 for C = 128.
    """
    # The mean is the hypergeometric function 0F1(C / 2; 4).
    term = total = 1.0
    for i in range(1, 50):
        term *= 4 / (i * (dim / 2 + i - 1))
        total += term
    return -4 + math.log(total)


def effective_rank(x):
    """How many directions vectors use: RankMe.

    Args:
        x: float (N, D), of different images, rows of any length.

    Returns:
        exp of the entropy of p = s / sum(s) + 1e-7, s the singular values of
        `x` (not the eigenvalues of a covariance). It is about 1 if all rows are
        parallel, and at most min(N, D). Compare it only among encoders of one
        method, on the same images.

    Reference:
        Equations 2 and 3 of [Garrido et al.,
        2023](https://arxiv.org/abs/2210.02885).
    """
    s = np.linalg.svd(_float64(x), compute_uv=False)
    p = s / max(s.sum(), np.finfo("float64").tiny) + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def deviation(x):
    """How far vectors of different images are from being the same.

    Args:
        x: float (N, D), rows of length 1.

    Returns:
        The standard deviation, averaged over the D elements, times sqrt(D): 1
        for vectors in all directions, 0 if all are the same.

    Reference:
        Section 4.2 of [Chen and He, 2021](https://arxiv.org/abs/2011.10566),
        where it is compared with 1 / sqrt(D).
    """
    x = _float64(x)
    return float(x.std(axis=0).mean() * math.sqrt(x.shape[1]))


def contrastive_accuracy(q, k, num_negatives):
    """The share of queries that are nearer to their own key than to others.

    Args:
        q, k: float (N, C), rows of length 1; `k[n]` is of the image of `q[n]`.
        num_negatives: keys of other images that each query is compared with:
            those of the rows after its own, and of the first after the last; at
            most N - 1.

    Returns:
        A float in [0, 1].
    """
    q, k = _float64(q), _float64(k)
    found = 0
    for rows in _blocks(len(q)):
        similarities = q[rows] @ k.T
        own = np.arange(len(q))[rows, None]
        after = (np.arange(len(q)) - own) % len(q)  # 0 is a query's own key
        compared = (after > 0) & (after <= num_negatives)
        best = np.where(compared, similarities, -np.inf).max(axis=1)
        found += (np.take_along_axis(similarities, own, 1)[:, 0] > best).sum()
    return float(found / len(q))


def mean_similarity(x):
    """Mean cosine similarity of different images.

    Args:
        x: float (N, D), rows of length 1; N >= 2.

    Returns:
        A float in [-1, 1]; 1 if all rows are the same.
    """
    x = _float64(x)
    of_all = np.square(x.sum(axis=0)).sum()
    return float((of_all - np.square(x).sum()) / (len(x) * (len(x) - 1)))


def quantiles(similarities):
    """The 5th, 50th and 95th percentile of an array, by these names."""
    found = np.percentile(_float64(similarities), _QUANTILES)
    return {f"{q:02}": float(x) for q, x in zip(_QUANTILES, found, strict=True)}


def relative_distance(weights, others):
    """Length of the difference of two sets of weights, over that of the first.

    Args:
        weights, others: lists of arrays, of the same shapes.
    """
    apart, length = 0.0, 0.0
    for a, b in zip(weights, others, strict=True):
        a = _float64(a)
        apart += np.square(a - b).sum()
        length += np.square(a).sum()
    return math.sqrt(apart / length) if length else 0.0


def share_of_class(labels, others):
    """The share of `others` that have the label of one of `labels`, on average.

    Args:
        labels: int (N,), of queries.
        others: int (M,), of the images that keys are made of. An image without
            a label, -1, is left out of both.

    Returns:
        A float in (0, 1]: 1 / C for C classes of one size.
    """
    labels, others = labels[labels >= 0], others[others >= 0]
    counts = np.bincount(others, minlength=labels.max() + 1)
    return float(counts[labels].mean() / len(others))


def share_of_copies(images):
    """The share of images that equal an earlier one, pixel for pixel.

    Args:
        images: (N, ...).
    """
    different = {hashlib.sha1(image.tobytes()).digest() for image in images}
    return 1 - len(different) / len(images)


def is_blank(image, value_range=(0, 255)):
    """Whether an image has one color.

    Args:
        image: (H, W, C).
        value_range: of its pixels. Each channel of a blank image stays within
            8 of 255 parts of it, so that the noise of a JPEG file does not
            count.
    """
    pixels = image.reshape(-1, image.shape[-1])
    low, high = value_range
    reach = np.subtract(pixels.max(0), pixels.min(0), dtype="float64")
    return bool((reach <= _NOISE * (high - low)).all())


def share_of_blank(images, value_range=(0, 255)):
    """The share of images of one color.

    Args:
        images: (N, H, W, C).
        value_range: as in `is_blank`.
    """
    return float(np.mean([is_blank(image, value_range) for image in images]))


def _blocks(count):
    """Slices of rows, so that N x N numbers need not be held at once."""
    return [slice(i, min(i + 1024, count)) for i in range(0, count, 1024)]


def _float64(x):
    return np.asarray(x, "float64")
