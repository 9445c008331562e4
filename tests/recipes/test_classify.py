import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moco_keras
from moco_keras import data
from moco_keras.evaluation import features, linear_probe
from moco_keras.recipes import _embed_parts, classify
from moco_keras.recipes.classify import ClassifySettings

CLASSES = ["dark one", "h\u00e9ll"]


@pytest.fixture
def flat_folder(tmp_path, rng):
    """Ten images without labels, with special names, and one broken file."""
    folder = tmp_path / "flat"
    folder.mkdir()
    names = [f"{i}.png" for i in range(8)]
    names += ['with, "commas".png', os.fsdecode(b"\xff.png")]
    for i, name in enumerate(names):
        low = 128 * (i % 2)
        pixels = rng.integers(low, low + 128, (8, 8, 3), "uint8")
        Image.fromarray(pixels).save(folder / name, format="PNG")
    (folder / "broken.png").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="session")
def classifier_export(tmp_path_factory):
    """An export of a classifier of images of 8 pixels, not trained."""
    encoder = moco_keras.build_encoder("resnet18", 8, 4, width=2)
    model = moco_keras.build_classifier(encoder, 2)
    model.get_layer("logits").kernel.assign_add(np.eye(16)[:, :2])
    folder = tmp_path_factory.mktemp("exported") / "classifier"
    moco_keras.export_classifier(model, folder, CLASSES)
    return model, folder


@pytest.fixture
def settings(classifier_export, flat_folder, tmp_path):
    return {
        "classifier": str(classifier_export[1]),
        "images": str(flat_folder),
        "out": str(tmp_path / "labels.csv"),
        "batch_size": 3,
    }


def run(settings, **changes):
    classify.classify(ClassifySettings(**{**settings, **changes}))


def rows_of(path):
    text = Path(path).read_text("utf-8", errors="surrogateescape")
    return list(csv.DictReader(text.splitlines()))


def test_every_image_gets_a_class_in_order(
    settings, classifier_export, flat_folder, tmp_path
):
    run(settings)
    rows = rows_of(settings["out"])
    files = [row["file"] for row in rows]
    assert sorted(files) == sorted(
        p.name for p in flat_folder.iterdir() if p.name != "broken.png"
    )
    model, _ = classifier_export
    pixels = np.stack([np.asarray(Image.open(flat_folder / f)) for f in files])
    logits = model.predict(pixels, verbose=0).astype("float64")
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, p in zip(rows, softmax, strict=True):
        assert row["class"] == CLASSES[p.argmax()]
        assert float(row["probability"]) == pytest.approx(p.max(), abs=1e-5)
    skipped = (tmp_path / "labels.skipped.csv").read_text()
    assert "broken.png" in skipped
    assert (tmp_path / "labels.png").stat().st_size > 5_000
    assert not list(tmp_path.glob("*.partial"))


def test_a_few_labeled_images_are_enough(
    settings, small_export, labeled_folder, flat_folder
):
    labeled = labeled_folder / "train"
    run(
        settings,
        classifier=None,
        encoder=str(small_export),
        labelled=str(labeled),
    )
    encoder = moco_keras.load_encoder(small_export, encoded=True)
    known = data.read_folder(labeled)
    files = sorted(labeled.rglob("*.png"))
    bank = encoder(np.array([f.read_bytes() for f in files], object)).numpy()
    labels = [CLASSES.index(f.parent.name) for f in files]
    assert known.num_examples == len(files)
    probe = linear_probe.fit(bank, labels)
    for row in rows_of(settings["out"]):
        content = (flat_folder / row["file"]).read_bytes()
        query = encoder(np.array([content], object)).numpy()
        (p,) = probe.predict_proba(features.unit_rows(query))
        assert row["class"] == CLASSES[p.argmax()]
        assert float(row["probability"]) == pytest.approx(p.max(), abs=1e-3)


@pytest.mark.slow
def test_it_resumes(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(_embed_parts, "_FILES_OF_A_PART", 3)
    run(settings, out=str(tmp_path / "whole.csv"))
    embed_batch, calls = _embed_parts.embed_batch, []

    def stop_at_the_third(*args):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed_batch(*args)

    monkeypatch.setattr(_embed_parts, "embed_batch", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    assert not Path(settings["out"]).exists()
    run(settings)
    assert rows_of(settings["out"]) == rows_of(tmp_path / "whole.csv")
    assert not list(tmp_path.glob("labels.*.partial"))


def test_it_resumes_between_its_picture_and_its_table(
    settings, tmp_path, monkeypatch
):
    of_embed = tmp_path / "labels.npz.0123456789ab.partial"
    of_embed.mkdir()

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(classify, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    assert (tmp_path / "labels.png").exists()
    run(settings)
    assert len(rows_of(settings["out"])) > 1
    assert list(tmp_path.glob("labels.*.partial")) == [of_embed]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": None}, "Either --classifier must be given"),
        ({"encoder": "x"}, "Either --classifier must be given"),
        ({"labelled": "x"}, "Either --classifier must be given"),
        ({"images": None}, "--images must be given"),
        ({"out": "labels.txt"}, "ends with .csv"),
    ],
)
def test_bad_settings(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        run(settings, **changes)


def test_what_is_no_classifier_is_named(settings, small_export, tmp_path):
    for place in (tmp_path / "flat", small_export):
        with pytest.raises(
            FileNotFoundError, match="--classifier must be.*wher"
        ):
            run(settings, classifier=str(place))


def test_a_table_that_is_there_is_not_overwritten(settings):
    Path(settings["out"]).write_text("mine")
    with pytest.raises(FileExistsError, match="Nothing was changed; choose"):
        run(settings)
    assert Path(settings["out"]).read_text() == "mine"


def test_labeled_images_must_be_in_folders_of_classes(
    settings, small_export, flat_folder
):
    with pytest.raises(ValueError, match="--labelled must hold a folder"):
        run(
            settings,
            classifier=None,
            encoder=str(small_export),
            labelled=str(flat_folder),
        )


def test_labeled_images_must_be_such_as_the_encoder_takes(
    settings, small_export, tmp_path
):
    for i in range(4):
        place = tmp_path / "deep" / str(i % 2)
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), i, "uint16")
        Image.fromarray(pixels).save(place / f"{i}.png")
    with pytest.raises(
        ValueError, match="the first is .*0.png: Pixels of 16 b"
    ):
        run(
            settings,
            classifier=None,
            encoder=str(small_export),
            labelled=str(tmp_path / "deep"),
        )
