"""Classifiers: the backbone of a trained encoder and a linear layer."""

import keras
from keras import layers

from moco_keras import arguments
from moco_keras.models import derived, model_files, model_state
from moco_keras.system import versions
from moco_keras.system.paths import printable

HEAD = "logits"  # the linear layer
_CLASSES = arguments.Kind("an integer of 2 or more", lambda x: 2 <= x < 2**31)


@keras.saving.register_keras_serializable(package="moco_keras")
class LinearClassifier(keras.Model):
    """A model that runs in inference mode, even while its head is trained.

    A frozen batch norm does so anyhow, but a frozen layer that drops units does
    not, and in Keras the mode of a model overrides that of the layers in it.
    """

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **{**kwargs, "training": False})


def build_classifier(encoder, num_classes, *, trainable="all"):
    """Builds a classifier on a trained encoder.

    It is a functional Keras model from pixels to logits: the encoder without
    its projection head, and a linear layer called "logits", whose weights are
    drawn from N(0, 0.01) and whose biases are 0. Its weights are copies, so the
    encoder stays as it is. Compile it with a loss of logits; class weights and
    all else are Keras's:

        model = build_classifier("saved_models/my_encoder", num_classes=10)
        model.compile(
            optimizers.SGD(0.01, multipliers={"logits": 20}),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(images, labels, epochs=20)

    Batch norm takes the whole batch, of any size, whatever splits it had in
    pre-training. If only the head is trained, the model runs in inference mode,
    so that batch norm and dropout leave features as they are, and
    `callbacks.CheckFrozen` verifies that nothing else changes.

    Args:
        encoder: a `MoCo`, for its query encoder; an encoder of `build_encoder`;
            or a path: of an export, of one of its versions, of a run, or of a
            `.keras` file that holds one of these.
        num_classes: 2 or more.
        trainable: "all" to fine-tune the backbone, apart from layers that are
            frozen in the encoder, or "head" to train the linear layer alone.

    Returns:
        A functional `keras.Model` from images, as the encoder takes them, to
        float32 (N, num_classes).

    Raises:
        FileNotFoundError: if there is no encoder at the path.
        ValueError: if the encoder has no backbone, or an argument is wrong.

    Reference:
        Section 4.1 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """
    num_classes = arguments.whole(_CLASSES, num_classes=num_classes)
    if trainable not in ("all", "head"):
        raise ValueError(
            '`trainable` must be "all" or "head". Received: '
            f"trainable={trainable!r}."
        )
    if not isinstance(encoder, keras.Model):
        encoder = model_files.load(encoder_file(encoder), "encoder")
    if hasattr(encoder, "query_encoder"):
        encoder.average_statistics()  # after an epoch that was interrupted
        encoder = encoder.query_encoder
    derived.backbone(encoder)  # or it is refused before it is copied
    backbone = derived.backbone(model_state.with_whole_batches(encoder))
    logits = layers.Dense(
        num_classes,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        dtype="float32",
        name=HEAD,
    )(backbone.output)
    if trainable == "all":
        return keras.Model(backbone.inputs[0], logits, name="classifier")
    for layer in backbone.layers:
        layer.trainable = False
    return LinearClassifier(backbone.inputs[0], logits, name="classifier")


def encoder_file(path):
    """The .keras file of an encoder.

    Args:
        path: of the file, of an export, of one of its versions, or of a run.

    Returns:
        A `Path`; only if `path` is that of a file it may be missing.

    Raises:
        FileNotFoundError: if there is no encoder.
    """
    path = arguments.path(encoder=path)
    if path.suffix == ".keras":
        return path
    folder = versions.find(path)
    if folder is None:
        raise FileNotFoundError(
            "`encoder` must be a model, or the path of an export, of a "
            "finished run, or of a .keras file. Received: "
            f"encoder={printable(path)}, where there is none."
        )
    return folder / "encoder.keras"
