"""The trained encoder that comes with a clone of the library."""

import hashlib
import json
import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from programs import ROOT

import moco_keras
from moco_keras import data, features, knn

RELEASED = ROOT / "saved_models" / "cifar10_hour"
FOLDER = RELEASED / "1"


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "encoder.json").read_text())


def test_every_file_is_as_it_was_released():
    sums = dict(
        reversed(line.split())
        for line in (RELEASED / "SHA256SUMS").read_text().splitlines()
    )
    files = [path for path in RELEASED.rglob("*") if path.is_file()]
    assert {str(path.relative_to(RELEASED)) for path in files} == {
        *sums,
        "SHA256SUMS",
    }
    for name, digest in sums.items():
        found = hashlib.sha256((RELEASED / name).read_bytes()).hexdigest()
        assert found == digest, name
    assert sum(path.stat().st_size for path in files) < 10_000_000


def test_its_card_names_no_place_on_a_machine(record):
    card = (FOLDER / "README.md").read_text()
    assert record["weights"]["sha256"] in card
    assert not re.search(r'(^|[\s"`])[/~]\w', card, re.M)
    assert re.fullmatch(r"[0-9a-f]{40}", record["git_revision"])


def test_both_of_its_files_embed_alike(record):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), "uint8")
    embeddings = moco_keras.load_encoder(RELEASED)(images).numpy()
    classifier = moco_keras.build_classifier(RELEASED, 10)
    of_keras = classifier.layers[-2].output
    found = keras.Model(classifier.input, of_keras).predict(images, verbose=0)
    assert embeddings.shape == (5, record["embedding_size"])
    scale = np.abs(embeddings).max()
    np.testing.assert_allclose(found, embeddings, rtol=0, atol=0.02 * scale)


def test_the_lines_of_the_readme_load_it():
    readme = (ROOT / "README.md").read_text()
    (lines,) = re.findall(
        r"    import moco_keras\n(?:    .*\n|\n)*    embeddings = .*\n", readme
    )
    code = textwrap.dedent(lines) + "print(embeddings.dtype, embeddings.shape)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    said = re.search(r"embeddings = .*# (.*)", lines).group(1)
    assert said == "float32 (N, 256)"
    assert ran.stdout == "<dtype: 'float32'> (100, 256)\n"


@pytest.mark.slow
def test_it_classifies_as_its_card_says(record, cifar10_dir):
    encoder = moco_keras.load_encoder(RELEASED)
    found = {}
    for split in ("train", "test"):
        images, labels, *_ = data.load("cifar10", split, data_dir=cifar10_dir)
        rows = [encoder(part) for part in np.array_split(images, 200)]
        found[split] = features.unit_rows(np.concatenate(rows)), labels
    accuracy = knn.accuracy(*found["train"], *found["test"], k=200)
    # The card's number is that of the training, in bfloat16.
    expected = record["training"]["metrics"]["knn_trained"]
    assert accuracy == pytest.approx(expected, abs=0.003)
