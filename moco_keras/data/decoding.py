"""Images as files hold them."""

import tensorflow as tf

# 150 MB of values, for each core that decodes.
MAX_PIXELS = 50_000_000


def decode(contents, channels=3):
    """Decodes JPEG, PNG, BMP, or the first picture of a GIF.

    Args:
        contents: string tensor, (), what a file holds.
        channels: 3 for RGB, or 1 for gray.

    Returns:
        uint8 (H, W, channels).

    Raises:
        tf.errors.InvalidArgumentError: if it is none of these, or damaged, or
            of more than 50 million pixels, which is checked first.
    """
    height, width = tf.unstack(tf.cast(_declared_size(contents), "int64"))
    check = tf.debugging.assert_less_equal(
        height * width,
        tf.constant(MAX_PIXELS, "int64"),
        f"More than {MAX_PIXELS:,} pixels",
    )
    with tf.control_dependencies([check]):
        image = tf.io.decode_image(
            contents, channels=channels, expand_animations=False
        )
    image.set_shape((None, None, channels))
    return image


def _declared_size(contents):
    """Height and width in any order, as the first bytes say; int32 (2,)."""
    # Padded, because the file may be shorter.
    head = tf.strings.join([tf.strings.substr(contents, 0, 32), bytes(32)])

    def begins_with(signature):
        return tf.strings.substr(head, 0, len(signature)) == signature

    def refuse():
        # TensorFlow decodes other formats, too, of any size.
        check = tf.debugging.assert_less(
            tf.strings.length(contents), 0, "Neither JPEG nor PNG, GIF or BMP"
        )
        with tf.control_dependencies([check]):
            return tf.zeros(2, "int32")

    def numbers(start, kind, **kwargs):
        size = 2 * tf.as_dtype(kind).size
        text = tf.strings.substr(head, start, size)
        values = tf.io.decode_raw(text, kind, **kwargs)
        return tf.cast(tf.ensure_shape(values, (2,)), "int32")

    return tf.case(
        [
            (
                begins_with(b"\xff\xd8\xff"),
                lambda: tf.io.extract_jpeg_shape(contents)[:2],
            ),
            (
                begins_with(b"\x89PNG\r\n\x1a\n"),
                lambda: numbers(16, "int32", little_endian=False),
            ),
            (begins_with(b"GIF8"), lambda: numbers(6, "uint16")),
            (begins_with(b"BM"), lambda: tf.abs(numbers(18, "int32"))),
        ],
        default=refuse,
    )
