import io

import numpy as np
import pytest
from PIL import Image

from moco_keras.evaluation import survey
from moco_keras.files import headers
from moco_keras.files.header import NotAnImageError


def picture(seed, size=(60, 48)):
    """A smooth picture with some detail, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), "uint8")
    smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray(
        np.clip(np.asarray(smooth) + noise, 0, 255).astype("uint8")
    )


def encoded(image, kind="PNG", **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def look(image, kind="PNG", **kwargs):
    return survey.look(io.BytesIO(encoded(image, kind, **kwargs)))


@pytest.mark.parametrize(
    ("mode", "alpha", "gray"),
    [("RGB", False, False), ("LA", True, True), ("RGBA", True, False)],
)
def test_the_header_of_a_file_is_kept(mode, alpha, gray):
    found = look(picture(0, (30, 20)).convert(mode))
    assert found.header == headers.of(
        io.BytesIO(encoded(picture(0, (30, 20)).convert(mode)))
    )
    assert (found.header.alpha, found.gray) == (alpha, gray)


def test_an_image_of_16_bits_and_one_that_is_turned():
    deep = np.arange(600, dtype="uint16").reshape(20, 30) * 7
    found = look(Image.fromarray(deep))
    assert found.header.dtype == "uint16"
    assert (found.low, found.high) == (0, 7 * 599)
    assert not found.blank
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = look(picture(0, (30, 20)), "JPEG", exif=exif)
    assert (turned.header.width, turned.header.height) == (20, 30)


def test_gray_and_blank_images_are_seen():
    color = picture(1)
    gray = color.convert("L").convert("RGB")
    blank = Image.new("RGB", (40, 30), (200, 100, 50))
    found = [look(x, "JPEG") for x in (color, gray, blank)]
    assert [x.gray for x in found] == [False, True, False]
    assert [x.blank for x in found] == [False, False, True]


def test_a_small_colored_spot_is_not_gray():
    image = picture(2, (600, 400)).convert("L").convert("RGB")
    image.paste((255, 0, 0), (300, 200, 340, 240))
    assert not look(image).gray


def test_what_is_no_image_is_an_error():
    with pytest.raises(NotAnImageError, match="Neither JPEG"):
        survey.look(io.BytesIO(b"text"))


def test_copies_are_those_of_earlier_files():
    a, b = look(picture(1)), look(picture(2))
    assert list(survey.copies([a, b, a, b, a])) == [-1, -1, 0, 1, 0]


@pytest.mark.parametrize(
    "edit",
    [
        lambda x: look(x, "JPEG", quality=60),
        lambda x: look(x.resize((30, 24))),
        lambda x: look(x.resize((240, 192))),
        lambda x: look(x.point(lambda v: min(255, round(1.1 * v)))),
    ],
    ids=["JPEG", "half", "large", "brighter"],
)
def test_near_copies_are_found(edit):
    images = [picture(seed) for seed in range(40)]
    looks = [look(image) for image in images] + [edit(x) for x in images]
    found = survey.near_copies(looks)
    assert (found[:40] == -1).all()
    assert (found[40:] == np.arange(40)).mean() >= 0.9


def test_other_images_are_no_near_copies():
    looks = [look(picture(seed)) for seed in range(200)]
    looks += [look(picture(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
    assert (survey.near_copies(looks) == -1).all()


def test_near_copies_by_pairs_in_loops(monkeypatch):
    """Of hashes and thumbnails at random, in blocks that do not divide."""
    monkeypatch.setattr(survey, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    hashes = rng.random((4, 64)) < 0.5
    thumbnails = rng.integers(0, 256, (3, 16, 16, 3), "uint8")
    looks = []
    for _ in range(40):
        flipped = rng.random(64) < rng.choice([0.02, 0.08])
        shift = rng.integers(0, 12, (16, 16, 3))
        looks.append(
            look(picture(0))._replace(
                digest=rng.bytes(32),
                hash=hashes[rng.integers(4)] ^ flipped,
                thumbnail=np.uint8(thumbnails[rng.integers(3)] // 2 + shift),
            )
        )

    def alike(a, b):
        x, y = (np.float64(t.thumbnail).ravel() for t in (a, b))
        x, y = x - x.mean(), y - y.mean()
        cosine = x @ y / np.sqrt(x @ x * (y @ y))
        return (a.hash != b.hash).sum() <= 4 and cosine >= 0.98

    expected = []
    for i, own in enumerate(looks):
        firsts = [j for j in range(i) if expected[j] < 0]
        expected.append(next((j for j in firsts if alike(own, looks[j])), -1))
    assert list(survey.near_copies(looks)) == expected
    assert 5 < sum(j >= 0 for j in expected) < 38


def test_blank_images_are_not_alike():
    looks = [look(Image.new("RGB", (32, 32), (v, v, 0))) for v in (0, 90, 90)]
    assert list(survey.near_copies(looks)) == [-1, -1, -1]
    assert list(survey.copies(looks)) == [-1, -1, 1]


def test_many_frames_of_one_scene_take_little_memory():
    """All pairs of 3,000 thumbnails would be 50 GB."""
    first = look(picture(0))
    looks = [first._replace(digest=i.to_bytes(32, "big")) for i in range(3000)]
    assert list(survey.near_copies(looks)) == [-1] + [0] * 2999
