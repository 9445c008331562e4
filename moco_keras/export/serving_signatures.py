"""The functions of an export that servers and other programs call."""

import keras
import tensorflow as tf

from moco_keras.export import verification
from moco_keras.files import decoding


def _with_empty_batches(compute):
    """The same function, which takes a batch of no images, too.

    Some kernels fail on an empty one.
    """

    def compute_all(images):
        number = tf.shape(images)[0]
        more = [[0, tf.maximum(0, 1 - number)], *[[0, 0]] * 3]
        outputs = compute(tf.pad(images, more))
        return {name: output[:number] for name, output in outputs.items()}

    return compute_all


def _check_shape(images, shape):
    """Returns the images, with a check of their shape that a server runs.

    Images of another shape would end in an error deep within, in a crash of the
    process, or in results for something else.
    """
    with tf.name_scope("given"):
        images = tf.raw_ops.PlaceholderWithDefault(
            input=images,
            shape=tf.TensorShape(None),  # or TensorFlow would rely on it
            name="images",
        )
    return tf.ensure_shape(images, (None, *shape))


def write(exported, model, images, folder):
    """Writes a SavedModel with both signatures, and checks that it loads.

    Args:
        exported: an `Exported`.
        model: its model, in float32.
        images: (N, H, W, C), to check it on.
        folder: a `Path`, that of the SavedModel.

    Returns:
        The signatures, as `model_card.write` takes them, and the results for
        the images, float32 (N, D).

    Raises:
        ValueError: if what was loaded does not return what the model does.
    """
    from moco_keras import augmentations  # slow to import

    shape = exported.image_shape
    evaluation = augmentations.evaluation(shape[:2])
    compute = exported.function(model)

    def with_more(images):
        results = compute(images)
        return results | exported.more(results[exported.result])

    outputs_of = _with_empty_batches(with_more)

    def serve_images(images):
        return outputs_of(_check_shape(images, shape))

    def decode(contents):
        return evaluation(decoding.decode(contents, shape[2])[None])[0]

    def serve_encoded(contents):
        image = tf.TensorSpec(shape, "float32")
        return outputs_of(
            tf.map_fn(decode, contents, fn_output_signature=image)
        )

    images_spec = tf.TensorSpec(
        (None, *shape), exported.image_dtype, name="images"
    )
    contents = tf.TensorSpec((None,), "string", name="image_bytes")
    archive = keras.export.ExportArchive()
    archive.track(model)  # for tables that its layers look things up in
    # In place of Keras's variables, which it adds, TensorFlow's own: those the
    # endpoints use. Otherwise each would be written twice.
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        variables = [v.value for v in getattr(model, name)]
        archive.add_variable_collection(name, variables)
    serve = archive.add_endpoint("serving_default", serve_images, [images_spec])
    if exported.decodes_files:
        archive.add_endpoint("serve_encoded", serve_encoded, [contents])
    expected = serve(images)[exported.result]
    archive.write_out(str(folder), verbose=False)
    tolerance = verification.tolerance_of(model)
    signatures = tf.saved_model.load(str(folder)).signatures
    examples = {"serving_default": {"images": tf.constant(images)}}
    if exported.decodes_files:
        files = tf.stack([tf.io.encode_png(image) for image in images])
        examples["serve_encoded"] = {"image_bytes": files}
    for name, given in examples.items():
        found = signatures[name](**given)
        verification.check(
            exported, name, found[exported.result], expected, tolerance
        )
        verification.check_more(exported, name, found)
    return {
        name: (
            signature.structured_input_signature[1],
            signature.structured_outputs,
        )
        for name, signature in signatures.items()
    }, expected
