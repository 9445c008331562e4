"""The page of a run: plain text, nothing from elsewhere, in a browser too."""

import base64
import html.parser
import json
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import reference
import tensorflow as tf

from moco_keras import plotting
from moco_keras.evaluation.alarms import Alarm

HOSTILE = "</script><script>alert('x')</script>\"'<b>&amp; \u732b \u05d0"


class Parsed(html.parser.HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.scripts = [], [], []
        self.addresses, self._inside = [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._inside = tag
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.addresses.append(value)
            if name in ("alt", "aria-label"):
                self.texts.append(value)

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        of_script = self._inside in ("script", "style")
        (self.scripts if of_script else self.texts).append(data)


def tiny_map(count=12, labels=None, names=("one", "two"), rng=None):
    rng = rng or np.random.default_rng(0)
    features = reference.unit_rows(rng, count)
    images = rng.integers(0, 256, (count, 9, 11, 3), "uint8")
    if labels is None:
        labels = np.arange(count) % len(names)
    return features, plotting.embedding_map(features, images, labels, names)


def content(word="word", **changes):
    """A page whose every text is a word."""
    png = tf.io.encode_png(np.zeros((4, 4, 3), "uint8")).numpy()
    picture = dict.fromkeys(("name", "title", "caption", "alt"), word)
    return {
        "title": word,
        "summary": [word, word],
        "alarms": [Alarm(word, 2, word)],
        "pictures": [{**picture, "data": plotting.data_uri(png)}],
        "map": tiny_map(names=(word, "other"))[1],
        "few_labels": [{"amount": 1, "method": word, "accuracy": word}],
        "use": [(word, word)],
        "columns": [word],
        "epochs": [[word]],
        "settings": [(word, word)],
        **changes,
    }


def page(tmp_path, *args, **changes):
    path = tmp_path / "page.html"
    plotting.report(path, **content(*args, **changes))
    return path.read_text(encoding="utf-8")


def test_every_text_is_shown_as_it_is(tmp_path):
    plain, hostile = (Parsed(page(tmp_path, x)) for x in ("word", HOSTILE))
    assert hostile.tags == plain.tags
    assert hostile.tags.count("script") == 2  # data, and the map's code
    shown = sum(HOSTILE in text for text in hostile.texts)
    assert shown == sum("word" in text for text in plain.texts)
    assert shown >= 14
    data = json.loads(hostile.scripts[1])
    assert data["names"][0] == f"{HOSTILE}, image 1"
    assert all("alert" not in x for x in hostile.scripts[2:])


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    text = page(tmp_path)
    addresses = Parsed(text).addresses
    assert len(addresses) == 3  # an icon, a picture, the sprite
    assert all(x.startswith("data:") for x in addresses)
    assert not re.search(r"https?:|@import|url\((?!data:)", text)
    assert "default-src 'none'" in text


def test_parts_that_are_not_there_are_left_out(tmp_path):
    text = page(tmp_path, map=None, alarms=[], few_labels=[], pictures=[])
    parsed = Parsed(text)
    assert not {"script", "canvas", "img"} & set(parsed.tags)
    headings = re.findall(r'<h2 id="(\w+)"', text)
    assert headings == ["use", "epochs", "settings"]


@pytest.mark.parametrize("count", [10, 40])
def test_the_nearest_on_the_map_have_the_largest_cosines(count):
    features, found = tiny_map(count)
    data = found["data"]
    assert found["method"] == "t-SNE"
    for i, nearest in enumerate(data["nearest"]):
        cosines = features @ features[i]
        order = [j for j in np.argsort(-cosines) if j != i][:5]
        assert [j for j, _ in nearest] == order
        given = [cosine for _, cosine in nearest]
        np.testing.assert_allclose(given, cosines[order], atol=1e-4)
    places = np.array(data["points"])[:, :2]
    assert places.min() >= 0.04 - 1e-9 and places.max() <= 0.96 + 1e-4
    assert json.loads(json.dumps(found))["data"] == data


def test_alike_images_are_near_each_other_on_the_map(rng):
    """Three groups of features."""
    group = np.arange(60) % 3
    features = np.eye(3)[group] + 0.01 * rng.normal(size=(60, 3))
    images = np.zeros((60, 8, 8, 3), "uint8")
    found = plotting.embedding_map(features, images, group, "abc")
    places = np.array(found["data"]["points"])[:, :2]
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    same = group[:, None] == group
    np.fill_diagonal(apart, np.inf)
    nearest = apart.argmin(axis=1)
    assert (group[nearest] == group).all()
    np.fill_diagonal(apart, 0)
    assert apart[same].mean() < apart[~same].mean() / 2
    again = plotting.embedding_map(features, images, group, "abc")
    assert again == found


def test_the_sprite_has_every_image_in_its_place():
    images = np.zeros((40, 64, 64, 3), "uint8")
    images[33] = 255  # the second of the second row
    features = reference.unit_rows(np.random.default_rng(0), 40)
    found = plotting.embedding_map(features, images, np.zeros(40, int), ["a"])
    data = found["data"]
    assert data["side"] == 48
    _, _, encoded = found["sprite"].partition("base64,")
    pixels = tf.io.decode_jpeg(base64.b64decode(encoded)).numpy()
    assert pixels.shape == (2 * 48, data["columns"] * 48, 3)
    tiles = pixels.reshape(2, 48, data["columns"], 48, 3).mean((1, 3, 4))
    bright = np.argwhere(tiles[:, : 40 - 32] > 128).tolist()
    assert bright == [[1, 1]]


def test_images_without_a_class_are_gray_and_few_have_no_map():
    labels = np.array([-1, 0, 1] * 4)
    found = tiny_map(labels=labels)[1]
    assert found["data"]["names"][:2] == ["image 1", "one, image 2"]
    numbers = [point[2] for point in found["data"]["points"]]
    assert numbers[:3] == [0, 1, 2] and len(found["data"]["colors"]) == 3
    assert [name for name, _ in found["legend"]] == ["one", "two"]
    no_classes = tiny_map(labels=np.full(12, -1), names=())[1]
    assert no_classes["legend"] == []
    assert len(no_classes["data"]["colors"]) == 1
    assert tiny_map(9)[1] is None
    many = [f"class {i}" for i in range(40)]
    assert tiny_map(40, names=many)[1]["legend"] == []


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_collapsed_encoder_has_no_map(value):
    """scikit-learn's t-SNE would end the process."""
    features, images = np.full((40, 8), value), np.zeros((40, 8, 8, 3), "uint8")
    features[:, 3] = 2 * value
    labels = np.zeros(40, int)
    assert plotting.embedding_map(features, images, labels, ["a"]) is None
    features[7] += 1e-9  # one that differs is enough
    found = plotting.embedding_map(features, images, labels, ["a"])
    assert len(found["data"]["points"]) == 40


def test_umap_is_used_where_it_is_installed(monkeypatch):
    class UMAP:
        def __init__(self, **kwargs):
            assert kwargs == {"metric": "cosine", "random_state": 0}

        def fit_transform(self, features):
            return features[:, :2]

    module = types.ModuleType("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    features, found = tiny_map()
    assert found["method"] == "UMAP"
    x = features[:, 0] - features[:, 0].min()
    placed = np.array(found["data"]["points"])[:, 0] - 0.04
    np.testing.assert_allclose(placed / placed.max(), x / x.max(), atol=1e-3)


# Chooses an image by the pointer, and then the next by a key.
DRIVER = """<script>
addEventListener("load", async () => {
  const canvas = document.getElementById("points");
  const data = document.getElementById("map-data").textContent;
  const [x, y] = JSON.parse(data).points[7];
  while (!document.querySelector("#chosen .tile")) {
    await new Promise((resume) => setTimeout(resume, 50));
    const box = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new PointerEvent("pointermove", {
      clientX: box.left + x * box.width, clientY: box.top + y * box.height,
    }));
  }
  const pointed = document.getElementById("chosen").innerText;
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  const loaded = performance.getEntriesByType("resource").map((e) => e.name);
  const width = document.documentElement.scrollWidth;
  parent.postMessage(JSON.stringify({
    pointed, next: document.getElementById("chosen").innerText,
    loaded: loaded.filter((name) => !name.startsWith("data:")),
    fits: width <= document.documentElement.clientWidth, width: innerWidth,
  }), "*");
});
</script></body>"""
# A browser's own window has a least width; a frame has not.
FRAME = """<title></title><script>
addEventListener("message", (event) => { document.title = event.data; });
</script><iframe src="driven.html" width="WIDTH" height="900">"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_works_in_a_browser(width, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("Chromium is not installed: the page was not opened")
    text = page(tmp_path, HOSTILE).replace("</body>", DRIVER)
    (tmp_path / "driven.html").write_text(text, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    found = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu"),
            f"--user-data-dir={tmp_path / 'profile'}",
            *("--window-size=1400,1000", "--virtual-time-budget=9000"),
            *("--enable-logging=stderr", "--dump-dom", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in found.stderr
    title = re.search("<title>(.*?)</title>", found.stdout, re.S)[1]
    said = json.loads(html.unescape(title))
    assert said["width"] == width
    assert said["loaded"] == [] and said["fits"]
    names = [HOSTILE, "other"]
    for text, i in ((said["pointed"], 7), (said["next"], 8)):
        own, *nearest = re.findall(r"image (\d+)", text)
        assert text.split(", image")[0] == names[i % 2]
        assert int(own) == i + 1 and len(nearest) == 5
