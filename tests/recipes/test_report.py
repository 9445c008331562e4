"""The page of a run from its folder, and what TensorBoard gets."""

import base64
import json
import os
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

from moco_keras.plotting import embedding_map
from moco_keras.recipes import _board, _run_files, report


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has done three of four epochs."""
    folder = tmp_path / "run <of> \u732b"
    folder.mkdir()
    record = {
        "recipe": "textures",
        "settings": {
            "backbone": "resnet18",
            "width": 8,
            "epochs": 4,
            "projection_dim": 128,
            "queue_size": 512,
            "temperature": 0.2,
            "momentum": 0.99,
            "symmetric": False,
            "run_dir": None,
        },
        "versions": {"keras": "3"},
        "device": "two cores",
        "data": {
            "source": "textures/1.0.0",
            "train_images": 2000,
            "test_images": 100,
            "image_shape": [32, 32, 3],
            "classes": [],
        },
    }
    _run_files.write_json(folder / "settings.json", record)
    _run_files.write_csv(folder / "history.csv", epochs())
    return folder


def epochs():
    measures = (
        "alignment uniformity rank_features rank_projections accuracy "
        "deviation_features similarity_features similarity_projections "
        "positive_05 positive_50 positive_95 negative_05 negative_50 "
        "negative_95 key_distance copies blank queue_age equal_views"
    )
    return [
        {
            "epoch": i + 1,
            "loss": 6.0 - i / 4,
            "contrastive_accuracy": 0.1,
            "knn": 0.5 + i / 10,
            **{f"health_{name}": 0.5 for name in measures.split()},
            "health_rank_projections": 20.0,
            "health_deviation_projections": 0.9 if i < 2 else 0.01,
            "health_copies": 0.6,
            "health_blank": 0.0,
            "health_equal_views": 0.0,
        }
        for i in range(3)
    ]


def finish(folder):
    metrics = {
        "knn_raw_pixels": 0.3,
        "knn_untrained": 0.4,
        "knn_trained": 0.7,
        "history": epochs(),
    }
    _run_files.write_json(folder / "metrics.json", metrics)
    _run_files.write_json(folder / "timing.json", {"seconds": 120})


def page(folder):
    report.report(report.ReportSettings(run_dir=str(folder)))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_run_that_is_going(run):
    text = page(run)
    assert "for 3 epochs. Device: two cores." in text
    assert "not finished: 3 of 4 epochs are done" in text
    assert "<title>textures, run &lt;of&gt; \u732b</title>" in text
    kinds = re.findall(r"<strong>([\w ]+)</strong>", text)
    assert kinds == ["duplicates", "collapse"]
    assert re.findall(r'<h2 id="(\w+)"', text) == [
        "alarms", "curves", "measures", "use", "epochs", "settings",
    ]  # fmt: skip
    assert "The loss goes from 6.000 to 5.500." in text
    assert "--run_dir=" in text and "load_encoder" not in text
    assert not list(run.glob(".*")), "nothing else is left"


def test_what_later_epochs_say_of_the_images_counts(run):
    """In a run that an older version began."""
    rows = epochs()
    first = {k: v for k, v in rows[0].items() if "health" not in k}
    _run_files.write_csv(run / "history.csv", [first, *rows[1:]])
    assert "<strong>duplicates</strong>" in page(run)


def test_a_folder_of_any_name_has_a_page(run, tmp_path):
    place = tmp_path / os.fsdecode(b"caf\xe9")
    run.rename(place)
    finish(place)
    assert "caf\\xe9" in page(place)


def test_the_page_of_a_run_before_its_first_epoch(run):
    (run / "history.csv").unlink()
    text = page(run)
    assert "for 0 epochs" in text and "<img" not in text


def test_the_page_of_a_finished_run(run):
    """One from before there were verdicts, too."""
    finish(run)
    few = [
        {
            "labels_per_class": 10,
            "method": "probe",
            "mean": 0.5,
            "standard_error": 0.01,
            "draws": 2,
            "encoder": digest,
        }
        for digest in ("of before", "newest")
    ]
    few[0]["mean"] = 0.123  # of an encoder that was replaced
    _run_files.write_json(run / "few_labels.json", few)
    version = run / "encoder" / "3"
    version.mkdir(parents=True)
    (version / "saved_model.pb").touch()
    card = {"weights": {"sha256": "newest"}}
    _run_files.write_json(version / "encoder.json", card)
    png = tf.io.encode_png(np.zeros((4, 4, 3), "uint8")).numpy()
    (run / "views.png").write_bytes(png)
    text = page(run)
    assert "in 2.0 minutes" in text
    assert "0.700 ± 0.046 of the 100 test images" in text
    assert "<td>frozen + probe</td>" in text and "0.500 ± 0.010" in text
    assert "0.123" not in text
    assert "load_encoder(&#39;" in text
    assert base64.b64encode(png).decode() in text
    assert len(text) < 3_000_000


def test_a_finished_run_that_is_being_continued_is_not_finished(run):
    finish(run)
    record = json.loads((run / "settings.json").read_text())
    record["settings"]["epochs"] = 9
    _run_files.write_json(run / _run_files.CONTINUED, record)
    (run / "views.png").write_bytes(b"of the result before")
    text = page(run)
    assert "not finished: 3 of 9 epochs" in text
    assert 'id="views"' not in text and "on_alarm" not in text


def test_a_run_that_an_alarm_stopped_says_how_to_go_on(run):
    record = json.loads((run / "settings.json").read_text())
    record["settings"]["on_alarm"] = "stop"
    _run_files.write_json(run / "settings.json", record)
    assert " --on_alarm=warn</code>" in page(run)


@pytest.mark.parametrize(
    ("folder", "error", "message"),
    [
        (None, ValueError, "--run_dir must be given"),
        (".", FileNotFoundError, "must be the folder of a run. Received: "),
    ],
)
def test_there_is_no_run(folder, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        report.report(report.ReportSettings(run_dir=folder))


def test_a_damaged_history_is_named_and_the_page_of_before_stays(run):
    before = page(run)
    (run / "history.csv").write_text("epoch,loss\n1,high\n")
    with pytest.raises(ValueError, match=r"history.csv must hold.*damaged"):
        page(run)
    assert (run / "report.html").read_text() == before


def events(folder):
    found = event_accumulator.EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_gets_pictures_and_embeddings(tmp_path, rng):
    png = tf.io.encode_png(rng.integers(0, 256, (6, 8, 3), "uint8")).numpy()
    (tmp_path / "views.png").write_bytes(png)
    _board.write_pictures(tmp_path, tmp_path / "logs", step=3)
    features = rng.normal(size=(15, 4))
    images = rng.integers(0, 256, (15, 8, 8, 3), "uint8")
    found = embedding_map(features, images, np.zeros(15, int), ["a\tb\n"])
    _board.write_embeddings(tmp_path / "logs", features, found)
    place = tmp_path / "logs" / "pictures"
    (event,) = events(place).Tensors("views")
    assert event.step == 3
    # The width, the height, and the pictures.
    assert event.tensor_proto.string_val[2] != b""
    written = np.loadtxt(place / "features.tsv", delimiter="\t")
    np.testing.assert_allclose(written, features, rtol=1e-4)
    names = (place / "names.tsv").read_text().splitlines()
    assert len(names) == 15 and names[0] == "a\\tb\\n, image 1"
    config = (place / "projector_config.pbtxt").read_text()
    for name in ("features.tsv", "names.tsv", "sprite.jpg"):
        assert name in config and (place / name).is_file()
    assert config.count("single_image_dim: 8") == 2


def test_tensorboard_gets_histograms_of_similarities(tmp_path, rng):
    class Monitor:
        similarities = rng.normal(size=9), rng.normal(size=(9, 5))

    board = _board.Similarities(tmp_path, Monitor())
    board.on_train_begin()
    board.on_epoch_end(0, {})  # was not measured
    board.on_epoch_end(1, {"health_negative_50": 0.1})
    board.on_train_end()
    found = events(tmp_path / "health")
    for name, count in (("positives", 9), ("negatives", 45)):
        (event,) = found.Tensors(f"similarity_{name}")
        histogram = tf.make_ndarray(event.tensor_proto)
        assert event.step == 1 and histogram[:, 2].sum() == count
