"""What a run begins with if --init_from names another one's model.keras."""

import tensorflow as tf

import moco_keras
from moco_keras import distribution
from moco_keras.models import model_files


def read(path, model):
    """Reads the weights, the key encoder and the queue of a `MoCo`.

    Args:
        path: of its .keras file.
        model: the `MoCo` that is to begin with them.

    Returns:
        A list of arrays, for `give`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds something else than a `MoCo`, or
            one of another architecture.
    """
    saved = model_files.load(path, "--init_from")
    if not isinstance(saved, moco_keras.MoCo):
        raise ValueError(
            "--init_from must be a .keras file of a MoCo, such as the "
            f"model.keras of a run. Received: {path}, which holds a "
            f"{type(saved).__name__}."
        )
    theirs, ours = _architecture(saved), _architecture(model)
    names = [n for n in theirs | ours if theirs.get(n) != ours.get(n)]
    if names:
        # Where a number differs, so do the weights that come of it.
        first = names[0]
        raise ValueError(
            "--init_from must be of the architecture that the other flags ask "
            f"for. Received: {path}, of {first} {theirs.get(first, 'none')}, "
            f"where the flags ask for {ours.get(first, 'none')}. Give the "
            "flags of that run, or another file."
        )
    return [array for part in _parts(saved) for array in part.get_weights()]


def give(model, arrays, strategy):
    """Gives a model what the chief has read, on all workers.

    Args:
        model: a `MoCo`.
        arrays: what `read` returned; None leaves it as it is, and counts for
            nothing on a worker that is not the chief.
        strategy: that of the model.
    """
    parts = _parts(model)
    if arrays is None:
        arrays = [array for part in parts for array in part.get_weights()]
    tensors = {str(i): tf.constant(array) for i, array in enumerate(arrays)}
    tensors = distribution.broadcast(tensors, strategy)
    arrays = iter([tensor.numpy() for tensor in tensors.values()])
    with strategy.scope():
        for part in parts:
            part.set_weights([next(arrays) for _ in part.weights])


def _parts(model):
    return model.query_encoder, model.key_encoder, model.queue


def _architecture(model):
    """What must be alike, by a name for people; the causes come first."""
    encoder = model.query_encoder
    return {
        "image size": "x".join(map(str, encoder.input_shape[1:3])),
        "queue size": model.queue.size,
        "projection dim": encoder.output_shape[-1],
        **{weight.path: tuple(weight.shape) for weight in encoder.weights},
    }
