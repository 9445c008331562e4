"""Image files that TensorFlow decodes by itself, in servers, too."""

import tensorflow as tf

# 150 MB of values, for each core that decodes.
MAX_PIXELS = 50_000_000

ORIENTATION = 0x0112  # a tag of EXIF
LONG = 4  # a type of numbers there
# What is done to an image as it is stored, by its orientation.
TRANSPOSED = 5, 6, 7, 8
LEFT_TO_RIGHT = 2, 3, 6, 7  # reversed after that
UPSIDE_DOWN = 3, 4, 7, 8


def decode(contents, channels=3):
    """Decodes JPEG and PNG, and of BMP and GIF what TensorFlow reads as it is.

    That is BMP of 24 bits a pixel, and the first picture of a GIF, if it covers
    all of its canvas and nothing shines through. Alpha is dropped.

    Args:
        contents: string tensor, (), what a file holds.
        channels: 3 for RGB, or 1 for gray.

    Returns:
        uint8 (H, W, channels).

    Raises:
        tf.errors.InvalidArgumentError: if it is of another kind, is damaged, or
            has more than 50 million pixels, which is checked first.
    """
    height, width = tf.unstack(tf.cast(_declared_size(contents), "int64"))
    check = tf.debugging.assert_less_equal(
        height * width,
        tf.constant(MAX_PIXELS, "int64"),
        f"More than {MAX_PIXELS:,} pixels",
    )
    with tf.control_dependencies([check]):
        image = decode_upright(contents, channels)
    image = oriented(image, _orientation(contents))
    image.set_shape((None, None, channels))
    return image


def decode_upright(contents, channels=3, dtype="uint8"):
    """Decodes a JPEG or a PNG whose header was seen: it is small, and upright.

    Args:
        contents, channels: as in `decode`.
        dtype: "uint8"; or "uint16", for PNG of 16 bits alone.

    Returns:
        (H, W, channels), of this type.

    Raises:
        tf.errors.InvalidArgumentError: if it is damaged.
    """
    if dtype == "uint16":
        image = tf.io.decode_png(contents, channels, dtype)
    else:
        image = tf.io.decode_image(
            contents, channels=channels, expand_animations=False
        )
    image.set_shape((None, None, channels))
    return image


def oriented(image, orientation):
    """An image as it is to be seen; other orientations than 2 to 8 are 1."""

    def is_one_of(values):
        return tf.reduce_any(orientation == values)

    def seen():
        height, width, channels = tf.unstack(tf.shape(image), num=3)
        transposed = is_one_of(TRANSPOSED)
        rows = tf.range(tf.where(transposed, width, height))
        columns = tf.range(tf.where(transposed, height, width))
        rows = tf.where(is_one_of(UPSIDE_DOWN), rows[::-1], rows)[:, None]
        columns = tf.where(is_one_of(LEFT_TO_RIGHT), columns[::-1], columns)
        # Of `tf.transpose`, oneDNN prints an error for pixels of 8 bits.
        places = tf.where(
            transposed, columns * width + rows, rows * width + columns
        )
        return tf.gather(tf.reshape(image, (-1, channels)), places)

    return tf.cond((orientation > 1) & (orientation <= 8), seen, lambda: image)


def _text(contents, start, count):
    """Bytes from `start` on, up to `count` of them."""
    start = tf.minimum(start, tf.strings.length(contents))
    return tf.strings.substr(contents, start, count)


def _numbers(contents, start, count, dtype="uint8", big=False):
    """Numbers from `start` on, int32 (count,); zeros after the end."""
    dtype = tf.as_dtype(dtype)
    size = count * dtype.size
    numbers = tf.io.decode_raw(
        _text(contents, start, size),
        dtype,
        little_endian=not big,
        fixed_length=size,
    )
    return tf.cast(numbers, "int32")


def _orientation(contents):
    """What EXIF says of a JPEG, int32; 1 if it says nothing."""

    def is_about_image(place):  # a segment of a camera or a program
        mark, kind = tf.unstack(_numbers(contents, place, 2), num=2)
        return (mark == 0xFF) & ((kind // 16 == 0xE) | (kind == 0xFE))

    def is_exif(place):
        # Its marker, two bytes of length, and its name.
        kind, name = (
            _text(contents, place + 1, 1),
            _text(contents, place + 4, 6),
        )
        return (kind == b"\xe1") & (name == b"Exif\0\0")

    def following(place):
        length = _numbers(contents, place + 2, 1, "uint16", big=True)[0]
        return [place + 2 + length]

    def entry(big):
        first = _numbers(contents, exif + 4, 1, "int32", big)[0]
        place = exif + tf.clip_by_value(first, 0, tf.strings.length(contents))
        count = tf.maximum(_numbers(contents, place, 1, "uint16", big)[0], 1)
        # Entries of 12 bytes: tag, type, the count in 4 bytes, and the value.
        rows = _numbers(contents, place + 2, 6 * count, "uint16", big)
        rows = tf.reshape(rows, (-1, 6))
        # The lower half of a value of 4 bytes comes last in one order.
        value = tf.where((rows[:, 1] == LONG) & big, rows[:, 5], rows[:, 4])
        found = tf.boolean_mask(value, rows[:, 0] == ORIENTATION)
        return tf.concat([found, [1]], 0)[0]

    segment = tf.while_loop(
        lambda place: is_about_image(place) & ~is_exif(place),
        following,
        [tf.constant(2)],
    )[0]
    exif = segment + 10  # what it says begins with the order of bytes
    big = _text(contents, exif, 2) == b"MM"
    return tf.cond(
        is_exif(segment),
        lambda: tf.cond(big, lambda: entry(big=True), lambda: entry(big=False)),
        lambda: tf.constant(1),
    )


def _declared_size(contents):
    """Height and width in any order, as the first bytes say; int32 (2,)."""

    def begins_with(signature):
        return _text(contents, 0, len(signature)) == signature

    def refuse():  # TensorFlow decodes other formats, too, of any size
        never = tf.strings.length(contents) < 0  # not known when it is traced
        with _refusal(never, "Neither JPEG nor PNG, GIF or BMP"):
            return tf.zeros(2, "int32")

    size = tf.case(
        [
            (
                begins_with(b"\xff\xd8\xff"),
                lambda: tf.io.extract_jpeg_shape(contents)[:2],
            ),
            (
                begins_with(b"\x89PNG\r\n\x1a\n"),
                lambda: _numbers(contents, 16, 2, "int32", big=True),
            ),
            (begins_with(b"GIF8"), lambda: _size_of_gif(contents)),
            (begins_with(b"BM"), lambda: _size_of_bmp(contents)),
        ],
        default=refuse,
    )
    return tf.ensure_shape(size, (2,))


def _refusal(condition, reason):
    """What follows needs a condition, or ends with the reason."""
    check = tf.debugging.assert_equal(condition, True, reason)
    return tf.control_dependencies([check])


def _size_of_bmp(contents):
    bits = _numbers(contents, 28, 1, "uint16")[0]
    compression = _numbers(contents, 30, 1, "int32")[0]
    plain = (bits == 24) & (compression == 0)
    with _refusal(plain, "BMP of other than 24 bits a pixel"):
        return tf.abs(_numbers(contents, 18, 2, "int32"))


def _size_of_gif(contents):
    canvas = _numbers(contents, 6, 2, "uint16")
    flags = _numbers(contents, 10, 1)[0]
    colors = tf.where(flags >= 128, 2 ** (1 + flags % 8), 0)

    # Extensions come first: a mark, a kind, and blocks, each with its length
    # before it, up to one of length 0. One kind says what shines through.
    def is_extension(place, in_blocks, transparent):
        return in_blocks | (_numbers(contents, place, 1)[0] == 0x21)

    def following(place, in_blocks, transparent):
        length, kind, _, about = tf.unstack(_numbers(contents, place, 4), num=4)
        says = ~in_blocks & (kind == 0xF9) & (about % 2 == 1)
        return (
            place + tf.where(in_blocks, 1 + length, 2),
            ~in_blocks | (length > 0),
            transparent | says,
        )

    place, _, transparent = tf.while_loop(
        is_extension,
        following,
        [13 + 3 * colors, tf.constant(False), tf.constant(False)],
    )
    # A picture: its mark, its place on the canvas, and its size.
    frame = _numbers(contents, place + 1, 4, "uint16")
    whole = tf.reduce_all(frame == tf.concat([[0, 0], canvas], 0))
    with _refusal(
        whole & ~transparent, "GIF that is transparent or in part empty"
    ):
        return canvas
