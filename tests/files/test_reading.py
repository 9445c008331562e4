"""Image files of all kinds, against Pillow and against arrays."""

import io
import struct
import sys
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps, PngImagePlugin

from moco_keras.files import decoding, headers, reading
from moco_keras.files.header import NotAnImageError

tifffile = pytest.importorskip("tifffile")


def smooth(height=30, width=42, channels=3, seed=0):
    """An image that JPEG and WebP keep nearly as it is."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (1, 5, 6, channels))
    image = tf.image.resize(coarse, (height, width), "bicubic")[0]
    return np.clip(image, 0, 255).astype("uint8")


def picture(mode="RGB", **kwargs):
    return Image.fromarray(smooth(**kwargs)).convert(mode)


def saved(image, kind, **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file


def as_pillow(file, mode="RGB"):
    """The image as Pillow shows it."""
    file.seek(0)
    with Image.open(file) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [
        ("RGB", "JPEG", 3),
        ("L", "JPEG", 1),
        ("CMYK", "JPEG", 3),
        ("RGB", "PNG", 3),
        ("RGBA", "PNG", 3),
        ("P", "PNG", 3),
        ("L", "PNG", 1),
        ("LA", "PNG", 1),
        ("1", "PNG", 1),
        ("RGB", "GIF", 3),
        ("L", "GIF", 3),
        ("RGB", "BMP", 3),
        ("P", "BMP", 3),
        ("1", "BMP", 1),
        ("RGB", "WebP", 3),
        ("RGBA", "WebP", 3),
        ("RGB", "TIFF", 3),
        ("RGBA", "TIFF", 3),
        ("CMYK", "TIFF", 3),
        ("P", "TIFF", 3),
        ("L", "TIFF", 1),
        ("LAB", "TIFF", 3),
    ],
)
def test_files_of_8_bits_are_read_as_pillow_reads_them(mode, kind, channels):
    image = picture("RGB")
    if mode == "LAB":
        pixels = np.asarray(image)
        image = Image.frombytes("LAB", image.size, pixels.tobytes())
    file = saved(image.convert(mode) if mode != "LAB" else image, kind)
    header = headers.of(file)
    assert (header.kind, header.channels) == (kind, channels)
    assert (header.height, header.width) == (30, 42)
    found = reading.read(file, header)
    expected = as_pillow(file, "L" if channels == 1 else "RGB")
    if channels == 1:
        expected = expected[..., None]
    assert (found.shape, found.dtype) == (expected.shape, "uint8")
    # TensorFlow decodes JPEG faster, and less exactly.
    atol = 4 if header.reader == "tensorflow" and kind == "JPEG" else 0
    np.testing.assert_allclose(found.astype(int), expected, atol=atol)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_of_exif_is_followed(kind, value):
    file = saved(picture(), kind, exif=with_orientation(value))
    expected = as_pillow(file)
    assert expected.shape[:2] == ((30, 42) if value < 5 else (42, 30))
    found = reading.read(file)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("value", range(10))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["short", "long"])
def test_a_server_follows_the_orientation_of_a_jpeg(kind, order, value):
    """Behind other segments, too, and in both orders of bytes."""
    number = "HHIHH" if kind == "short" else "HHII"
    tail = (3, 1, value, 0) if kind == "short" else (4, 1, value)
    entries = struct.pack(
        f"{order}HHHIHH{number}I", 2, 0x010F, 3, 1, 7, 0, 0x0112, *tail, 0
    )
    start = b"II*\0" if order == "<" else b"MM\0*"
    exif = b"Exif\0\0" + start + struct.pack(f"{order}I", 8) + entries
    plain = saved(picture(), "JPEG").getvalue()

    def segment(kind, contents):
        return (
            bytes([255, kind]) + struct.pack(">H", 2 + len(contents)) + contents
        )

    comment, other = segment(0xFE, b"words"), segment(0xED, b"Photoshop")
    contents = plain[:2] + comment + other + segment(0xE1, exif) + plain[2:]
    upright = decoding.decode(plain).numpy()
    found = decoding.decode(contents).numpy()
    expected = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, -1)[::-1],
        8: lambda x: np.rot90(x),
    }.get(value, lambda x: x)(upright)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, reading.read(io.BytesIO(contents)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_16_bits_keeps_all_of_them(channels):
    pixels = np.arange(12 * 16 * channels, dtype="uint16") * 83
    pixels = pixels.reshape(12, 16, channels)
    file = io.BytesIO(tf.io.encode_png(pixels).numpy())
    header = headers.of(file)
    assert (header.dtype, header.channels) == ("uint16", channels)
    np.testing.assert_array_equal(reading.read(file, header), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    "shape", [(9, 14), (9, 14, 3), (9, 14, 5), (9, 14, 13)]
)
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_tiff_of_any_depth_and_channels(dtype, shape, compression):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-3000, 3000, shape)
    if dtype.startswith("u"):
        pixels = np.abs(pixels)
    pixels = pixels.astype(dtype)
    for planar in ("contig", "separate") if len(shape) == 3 else (None,):
        file = io.BytesIO()
        data = pixels
        if planar == "separate":
            data = np.moveaxis(pixels, -1, 0)
        tifffile.imwrite(
            file,
            data,
            photometric="rgb" if shape[2:] == (3,) else "minisblack",
            planarconfig=planar,
            compression=compression,
        )
        header = headers.of(file)
        assert (header.dtype, header.channels) == (dtype, (*shape, 1)[2])
        expected = pixels.reshape(*shape[:2], -1)
        np.testing.assert_array_equal(reading.read(file, header), expected)


def test_a_tiff_of_12_bits_in_16_keeps_its_levels():
    """Such an image has 4,096 levels; 8 bits would leave 16."""
    pixels = np.arange(4096, dtype="uint16").reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        found = reading.read(saved(Image.fromarray(pixels), kind))
        assert len(np.unique(found)) == 4096


def test_of_several_pages_or_pictures_the_first_is_read():
    pictures = [picture(seed=seed) for seed in range(3)]
    for kind in ("TIFF", "GIF", "WebP", "PNG"):
        kwargs = {"lossless": True} if kind == "WebP" else {}
        file = saved(
            pictures[0],
            kind,
            save_all=True,
            append_images=pictures[1:],
            **kwargs,
        )
        np.testing.assert_array_equal(reading.read(file), as_pillow(file))


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "<i2", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files(dtype, order):
    pixels = np.asarray(
        np.arange(2 * 3 * 4).reshape(2, 3, 4), dtype=dtype, order=order
    )
    file = io.BytesIO()
    np.save(file, pixels)
    found = reading.read(file)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, pixels)
    file = io.BytesIO()
    np.save(file, pixels[..., 0])
    assert reading.read(file).shape == (2, 3, 1)


def test_channels_that_seem_to_come_first_are_refused():
    for shape in ((13, 64, 48), (3, 64, 64)):
        with pytest.raises(NotAnImageError, match=r"first; np.moveaxis\(x, 0"):
            headers.of(npy(np.zeros(shape, "uint8")))
    for shape in ((64, 48, 13), (9, 9, 200), (32, 48, 224), (2, 9, 3)):
        header = headers.of(npy(np.zeros(shape, "uint8")))
        assert (header.height, header.width, header.channels) == shape


def test_a_reduced_image_is_not_taken_for_the_raw_one():
    file = io.BytesIO()
    picture = np.zeros((8, 9, 3), "uint8")
    tifffile.imwrite(file, picture, photometric="rgb", subfiletype=1)
    with pytest.raises(NotAnImageError, match="as raw files of cameras"):
        headers.of(file)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_0_may_be_white(dtype):
    pixels = np.arange(64, dtype=dtype).reshape(8, 8)
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="miniswhite")
    expected = np.iinfo(dtype).max - pixels
    np.testing.assert_array_equal(reading.read(file)[..., 0], expected)


def test_0_may_be_white_of_12_bits():
    pixels = np.arange(64, dtype="uint16").reshape(8, 8)
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="miniswhite", bitspersample=12)
    np.testing.assert_array_equal(reading.read(file)[..., 0], 4095 - pixels)


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (npy(np.zeros((2, 2, 3))), "type float64, not uint8, uint16"),
        (npy(np.zeros((2, 2, 3), "bool")), "type bool"),
        (npy(np.zeros((2, 2, 3, 1), "uint8")), r"shape \(2, 2, 3, 1\), not"),
        (npy(np.zeros(4, "uint8")), r"shape \(4,\), not \(H, W, C\)"),
        (npy(np.zeros((0, 4, 3), "uint8")), "without pixels"),
        (npy(np.zeros((4, 4, 0), "uint8")), "without pixels"),
        (npy(np.array([["a", {}]], "object")), "type object"),
        (npy(np.full((2, 2, 1), np.nan, "float32")), "no numbers, such as NaN"),
        (npy(np.full((2, 2, 1), np.inf, "float32")), "no numbers"),
        (io.BytesIO(b""), "Neither JPEG"),
        (io.BytesIO(b"\x93NUMPY"), "Invalid .npy"),
        (io.BytesIO(b"\xff\xd8\xff"), "Invalid JPEG"),
        (io.BytesIO(b"\x89PNG\r\n\x1a\n"), "Invalid PNG"),
        (io.BytesIO(b"II*\0"), "Invalid TIFF"),
        (io.BytesIO(b"RIFF\0\0\0\0WEBP"), "Invalid WebP"),
        (io.BytesIO(b"GIF89a"), "Invalid GIF"),
        (io.BytesIO(b"BM"), "Invalid BMP"),
    ],
    ids=range(17),
)
def test_what_is_no_image_is_refused_with_a_reason(file, reason):
    with pytest.raises(NotAnImageError, match=reason):
        reading.read(file)


def vast(kind):
    """A small file that says that its image is vast."""
    if kind == ".npy":
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": "|u1", "fortran_order": False, "shape": (9000, 9000, 3)},
        )
        return file
    if kind == "TIFF of many channels":
        file = io.BytesIO()
        data = np.zeros((2, 2, 9), "uint16")
        tifffile.imwrite(
            file, data, photometric="minisblack", planarconfig="contig"
        )
        contents = bytearray(file.getvalue())
        for tag in (256, 257):  # width and height
            place = contents.index(struct.pack("<H", tag))
            contents[place + 8 : place + 10] = struct.pack("<H", 9000)
        return io.BytesIO(bytes(contents))
    image = Image.new("1", (9000, 9000))
    if kind == "WebP":
        return saved(Image.new("RGB", (9000, 9000)), kind, lossless=True)
    return saved(image, kind)


@pytest.mark.parametrize(
    "kind",
    [
        "JPEG",
        "PNG",
        "GIF",
        "BMP",
        "TIFF",
        "WebP",
        ".npy",
        "TIFF of many channels",
    ],
)
def test_vast_images_are_refused_by_their_headers(kind):
    with pytest.raises(NotAnImageError, match="More than 50,000,000 pixels"):
        headers.of(vast(kind))


def test_many_channels_are_bounded_too():
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (900, 900, 99)}
    )
    with pytest.raises(NotAnImageError, match="More than 150 MB of pixels"):
        headers.of(file)


def test_files_that_are_cut_off_do_not_seem_whole():
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF", ".npy"):
        if kind == ".npy":
            whole = npy(smooth()).getvalue()
        else:
            whole = saved(picture(), kind).getvalue()
        assert headers.of(io.BytesIO(whole)).whole, kind
        cut = io.BytesIO(whole[: len(whole) * 2 // 3])
        try:
            header = headers.of(cut)
        except NotAnImageError:
            continue
        assert not header.whole, kind
        with pytest.raises(NotAnImageError):
            reading.read(cut, header)


def test_without_tifffile_the_reason_says_what_to_install(monkeypatch):
    file = io.BytesIO()
    data = np.zeros((4, 5, 7), "uint16")
    tifffile.imwrite(
        file, data, photometric="minisblack", planarconfig="contig"
    )
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(
        NotAnImageError, match=r'pip install "moco_keras\[tiff\]"'
    ):
        headers.of(file)
    deep = saved(Image.fromarray(data[..., 0]), "TIFF")
    assert reading.read(deep).dtype == "uint16"  # by Pillow


def test_bands_that_pillow_would_drop_are_read():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 5), "uint8")
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="rgb", extrasamples=(0, 0))
    assert headers.of(file).channels == 5
    np.testing.assert_array_equal(reading.read(file), pixels)
    file = io.BytesIO()
    tifffile.imwrite(
        file, pixels[..., :4], photometric="rgb", extrasamples=(0,)
    )
    np.testing.assert_array_equal(reading.read(file), pixels[..., :4])
    file = io.BytesIO()  # of transparency alone
    tifffile.imwrite(
        file, pixels[..., :4], photometric="rgb", extrasamples=(2,)
    )
    header = headers.of(file)
    assert (header.channels, header.alpha) == (3, True)
    np.testing.assert_array_equal(reading.read(file), pixels[..., :3])
    file = io.BytesIO()  # before another band
    tifffile.imwrite(file, pixels, photometric="rgb", extrasamples=(2, 0))
    np.testing.assert_array_equal(reading.read(file), pixels[..., [0, 1, 2, 4]])


def test_conversions():
    gray, color = smooth(channels=1), smooth(channels=3)
    four = smooth(channels=4)
    convert = reading.convert
    np.testing.assert_array_equal(
        convert(gray, 3, "uint8"), np.repeat(gray, 3, -1)
    )
    expected = color @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_array_equal(
        convert(color, 1, "uint8")[..., 0], np.rint(expected)
    )
    repeated = np.repeat(gray, 3, -1)
    np.testing.assert_array_equal(convert(repeated, 1, "uint8"), gray)
    np.testing.assert_array_equal(convert(four, 3, "uint8"), four[..., :3])
    deep = gray.astype("uint16") * 257
    np.testing.assert_array_equal(convert(deep, 1, "uint8"), gray)
    found = convert(deep, 1, "float32")
    assert found.dtype == "float32"
    np.testing.assert_array_equal(found, deep)
    for channels, dtype, reason in (
        (5, "uint8", "of 3 channels, not 5"),
        (3, "uint16", "of type uint8, not uint16"),
    ):
        with pytest.raises(NotAnImageError, match=reason):
            convert(color, channels, dtype)
    with pytest.raises(NotAnImageError, match="of 5 channels, not 3"):
        convert(smooth(channels=5), 3, "uint8")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_gray_of_a_color_png_is_that_of_a_server(dtype):
    pixels = smooth().astype(dtype)
    if dtype == "uint8":
        contents = tf.io.encode_png(pixels).numpy()
        served = decoding.decode(contents, 1).numpy()
        np.testing.assert_allclose(
            served.astype(int), reading.convert(pixels, 1, dtype), atol=1
        )
    assert reading.convert(pixels, 1, dtype).dtype == dtype


def gif(transparent=False, patch=False):
    image = picture().quantize(8)
    kwargs = {"transparency": 3} if transparent else {}
    contents = bytearray(saved(image, "GIF", **kwargs).getvalue())
    if patch:  # on a canvas that is larger than it
        contents[6:10] = struct.pack("<HH", 50, 40)
    return bytes(contents)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (gif(transparent=True), "GIF that is transparent or in part empty"),
        (gif(patch=True), "GIF that is transparent or in part empty"),
        (saved(picture("P"), "BMP").getvalue(), "BMP of other than 24 bits"),
        (saved(picture("1"), "BMP").getvalue(), "BMP of other than 24 bits"),
        (saved(picture(), "TIFF").getvalue(), "Neither JPEG nor PNG, GIF or"),
        (saved(picture(), "WebP").getvalue(), "Neither JPEG nor PNG, GIF or"),
        (b"", "Neither JPEG nor PNG, GIF or BMP"),
    ],
    ids=range(7),
)
def test_a_server_refuses_what_it_would_read_wrongly(contents, reason):
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        decoding.decode(contents)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_server_reads_other_gif_and_bmp_as_pillow_does(mode):
    comments = {"comment": b"x" * 700}
    file = saved(picture(mode), "GIF", **comments)
    np.testing.assert_array_equal(
        decoding.decode(file.getvalue()), as_pillow(file)
    )
    file = saved(picture(), "BMP")
    np.testing.assert_array_equal(
        decoding.decode(file.getvalue()), as_pillow(file)
    )
    assert headers.of(io.BytesIO(gif(patch=True))).kind == "GIF"


def damaged(contents, rng):
    """Bytes of a file that are changed, cut out or added, at random."""
    contents = bytearray(contents)
    for _ in range(rng.integers(1, 6)):
        place = rng.integers(len(contents))
        kind = rng.integers(4)
        if kind == 0:
            contents[place] = rng.integers(256)
        elif kind == 1:
            contents[place : place + rng.integers(1, 9)] = rng.bytes(4)
        elif kind == 2:
            del contents[place : place + rng.integers(1, 40)]
        else:
            del contents[max(12, place) :]
        if not contents:
            return b""
    return bytes(contents)


def files_to_damage():
    many = io.BytesIO()
    tifffile.imwrite(
        many,
        smooth(channels=7).astype("uint16"),
        photometric="minisblack",
        planarconfig="contig",
        compression="lzw",
    )
    return {
        "JPEG": saved(picture(), "JPEG", exif=with_orientation(6)),
        "PNG": saved(picture(), "PNG", exif=with_orientation(6)),
        "GIF": saved(picture("P"), "GIF", transparency=3),
        "BMP": saved(picture("P"), "BMP"),
        "WebP": saved(picture("RGBA"), "WebP", exif=with_orientation(6)),
        "TIFF": saved(picture(), "TIFF", compression="tiff_lzw"),
        "TIFF of many channels": many,
        ".npy": npy(smooth()),
    }


@pytest.mark.parametrize("kind", files_to_damage())
def test_damaged_files_are_read_or_refused(kind):
    """`tests/helpers/fuzz_files.py` tries thousands."""
    contents = files_to_damage()[kind].getvalue()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        file = io.BytesIO(damaged(contents, rng))
        try:
            found = reading.read(file)
            assert found.ndim == 3 and found.size
        except NotAnImageError as error:
            refused += 1
            assert str(error)
    assert refused > 5


def test_a_vast_png_is_refused_before_its_texts_are_asked():
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", "<x/>")
    contents = saved(Image.new("1", (9000, 9000)), "PNG", pnginfo=texts)
    with mock.patch.object(headers, "_asked_of_pillow", side_effect=KeyError):
        with pytest.raises(NotAnImageError, match="More than 50,000,000"):
            headers.of(contents)


def test_a_png_may_have_its_orientation_in_xmp():
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt(
        "XML:com.adobe.xmp",
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="a">'
        '<rdf:Description xmlns:tiff="b" tiff:Orientation="6"/>'
        "</rdf:RDF></x:xmpmeta>",
    )
    file = saved(picture(), "PNG", pnginfo=texts)
    assert headers.of(file).orientation == 6
    np.testing.assert_array_equal(reading.read(file), as_pillow(file))
