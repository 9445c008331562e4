"""What the headers of image files say of the images in them."""

import contextlib
import math
import re
import struct

import numpy as np

from moco_keras.files import tiff
from moco_keras.files.decoding import LONG, MAX_PIXELS, ORIENTATION
from moco_keras.files.header import (
    NO_KIND,
    Header,
    NotAnImageError,
    checked_dtype,
    of_pillow,
    one_line,
    open_by_pillow,
    size_of,
)

MAX_BYTES = 3 * MAX_PIXELS  # of the pixels of an image

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # for files of any size
    b"MM\0+": "TIFF",
    b"\x93NUMPY": ".npy",
}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # without alpha, by color type
_PNG_ALPHA = 4  # the first color type that has it


def of(file):
    """Reads the header of an image file, but not its pixels.

    Args:
        file: a binary file.

    Returns:
        A `Header`.

    Raises:
        NotAnImageError: if it is of no kind that can be read, or larger than
            50 million pixels or 150 MB of pixels.
    """
    kind = kind_of(file)
    try:
        header = _HEADERS[kind](file)
        _check_size(header)
    except (NotAnImageError, MemoryError):
        raise
    except Exception as error:  # damaged files have any part of a reader fail
        raise NotAnImageError(f"Invalid {kind}: {one_line(error)}") from error
    return header


def _check_size(header):
    shape = header.height, header.width, header.channels
    if min(shape) <= 0:
        raise NotAnImageError(f"{header.kind} without pixels")
    if header.height * header.width > MAX_PIXELS:
        raise NotAnImageError(f"More than {MAX_PIXELS:,} pixels")
    if math.prod(shape) * np.dtype(header.dtype).itemsize > MAX_BYTES:
        raise NotAnImageError(f"More than {MAX_BYTES / 1e6:.0f} MB of pixels")


def kind_of(file):
    """The kind of an image file, by its first bytes.

    Raises:
        NotAnImageError: if it is of another kind than `header.KINDS`.
    """
    file.seek(0)
    head = file.read(12)
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "WebP"
    raise NotAnImageError(NO_KIND)


def _end(file):
    """The last bytes of a file."""
    file.seek(max(0, size_of(file) - 4096))
    return file.read()


def _jpeg(file):
    header = _of_jpeg_segments(file)
    if header is None or header.channels not in (1, 3):
        return of_pillow(file, "JPEG")
    return header


def _of_jpeg_segments(file):
    """The header of a JPEG, or None if its segments are out of order."""
    exif, has_xmp, place = b"", False, 2
    while True:
        file.seek(place)
        start = file.read(4)
        if len(start) < 4 or start[0] != 0xFF:
            return None
        mark, length = start[1], int.from_bytes(start[2:], "big")
        if mark == 0xE1:
            contents = file.read(length - 2)
            if contents.startswith(b"Exif\0\0"):
                exif = exif or contents[6:]
            has_xmp = has_xmp or contents.startswith(b"http://ns.adobe.com/xap")
        # Frames have these marks, which leave three others out.
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            break
        place += 2 + length
    _, height, width, channels = struct.unpack(">BHHB", file.read(6))
    orientation = _of_exif(exif)
    if orientation is None and has_xmp:
        orientation = _asked_of_pillow(file, "JPEG")
    return Header(
        "JPEG",
        height,
        width,
        channels,
        orientation=orientation or 1,
        reader="tensorflow",
        whole=b"\xff\xd9" in _end(file),
    )


def _of_exif(exif):
    """The orientation that EXIF tells, or None."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    with contextlib.suppress(struct.error):  # of an end that comes too soon
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, first)
        for i in range(count):
            place = first + 2 + 12 * i
            tag, kind, _, value = struct.unpack_from(
                f"{order}HHIH", exif, place
            )
            if kind == LONG:
                (value,) = struct.unpack_from(f"{order}I", exif, place + 8)
            if tag == ORIENTATION:
                return value if 1 <= value <= 8 else None
    return None


def _asked_of_pillow(file, kind):
    """The orientation in any of the places where Pillow looks for it."""
    value = open_by_pillow(file, kind).getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _png(file):
    file.seek(8)
    _, name, width, height, depth, color = struct.unpack(
        ">I4sIIBB", file.read(18)
    )
    if name != b"IHDR" or color not in _PNG_CHANNELS:
        raise NotAnImageError("Invalid PNG")
    orientation, alpha, place = 1, color >= _PNG_ALPHA, 33
    in_text = False
    while True:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        if name in (b"IDAT", b"IEND"):
            break
        if name == b"eXIf":
            orientation = _of_exif(file.read(length)) or 1
        elif name in (b"iTXt", b"tEXt", b"zTXt"):
            in_text = in_text or re.match(
                rb"XML:com|Raw profile type", file.read(20)
            )
        alpha = alpha or name == b"tRNS"
        place += 12 + length
    header = Header(
        "PNG",
        height,
        width,
        _PNG_CHANNELS[color],
        "uint16" if depth == 16 else "uint8",
        orientation,
        "tensorflow",
        alpha,
        b"IEND" in _end(file),
    )
    if in_text and orientation == 1:
        _check_size(header)  # Pillow decodes the image for it
        header = header._replace(orientation=_asked_of_pillow(file, "PNG"))
    return header


def _gif(file):
    whole = _end(file).rstrip(b"\0").endswith(b";")
    return of_pillow(file, "GIF")._replace(whole=whole)


def _bmp(file):
    file.seek(0)
    head = file.read(34).ljust(34, b"\0")
    start, bits, compression = (
        int.from_bytes(head[i:j], "little")
        for i, j in ((10, 14), (28, 30), (30, 34))
    )
    header = of_pillow(file, "BMP")
    size = start + (header.width * bits + 31) // 32 * 4 * header.height
    whole = compression in (0, 3) and size <= size_of(file)
    return header._replace(whole=whole)


def _webp(file):
    # Pillow has room for the whole canvas as soon as it opens one.
    file.seek(4)
    (size,) = struct.unpack("<I", file.read(4))
    file.seek(12)
    head = file.read(18)
    if head[:4] == b"VP8X":
        width, height = (
            1 + int.from_bytes(head[i : i + 3], "little") for i in (12, 15)
        )
    elif head[:4] == b"VP8L":
        bits = int.from_bytes(head[9:13], "little")
        width, height = 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    else:
        width, height = (x % 2**14 for x in struct.unpack("<HH", head[14:18]))
    if width * height > MAX_PIXELS:
        return Header("WebP", height, width, 3)
    return of_pillow(file, "WebP")._replace(whole=size + 8 <= size_of(file))


def _npy(file):
    shape, _, dtype = npy_header(file)
    if len(shape) not in (2, 3):
        raise NotAnImageError(f".npy of shape {shape}, not (H, W, C)")
    channels = shape[2] if len(shape) == 3 else 1
    if channels > 4 and 0 < 2 * shape[0] < min(shape[1:]):
        raise NotAnImageError(
            f".npy of shape {shape}, which seems to have its channels first; "
            "np.moveaxis(x, 0, -1) brings them to (H, W, C)"
        )
    bytes_there = size_of(file) - file.tell()
    return Header(
        ".npy",
        *shape[:2],
        channels,
        checked_dtype(dtype),
        reader="numpy",
        whole=bytes_there == math.prod(shape) * dtype.itemsize,
    )


def npy_header(file):
    """Shape, whether the order is Fortran's, and dtype of a .npy file."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


_HEADERS = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "WebP": _webp,
    "TIFF": tiff.of,
    ".npy": _npy,
}
