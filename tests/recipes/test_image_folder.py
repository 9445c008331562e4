"""How `image_folder` finds classes and splits in folders, and reports them."""

import dataclasses
import json
import os

import keras
import pytest
from PIL import Image
from programs import RUN_FILES

from moco_keras.data import textures
from moco_keras.distribution import accelerators
from moco_keras.evaluation import features, linear_probe
from moco_keras.recipes import _data, _evaluation, _pretrain, image_folder
from moco_keras.system.paths import printable


def write(folder, **counts):
    """Writes a number of images to each folder; "__" stands for "/"."""
    pixels, _ = textures.draw(max(20, *counts.values()), seed=0)
    for name, count in counts.items():
        place = folder.joinpath(*name.split("__"))
        place.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(pixels[:count]):
            Image.fromarray(image).save(place / f"{i}.png")


def settings(folder, **changes):
    return image_folder.FolderSettings(
        images=folder, image_size=8, batch_size=8, **changes
    )


def read(folder, **changes):
    return image_folder.read(settings(folder, **changes))


def test_classes_are_folders(tmp_path):
    write(tmp_path, cats=10, dogs=5)
    images = read(tmp_path)
    assert (images.train.num_examples, images.test.num_examples) == (15, 3)
    assert images.bank.num_examples == 12
    assert _evaluation.why_no_knn(images) is None
    assert images.notes == [
        "Classes, the folders of the training images: cats 10, dogs 5",
        "Tests: some of the images, also trained on, without their names",
    ]


def test_images_that_do_not_fit_in_memory_are_refused(tmp_path, monkeypatch):
    write(tmp_path, cats=10, dogs=5)
    need = 2 * 15 * 3 * 8**2
    for free in (None, need):
        monkeypatch.setattr(accelerators, "free_memory", lambda x=free: x)
        read(tmp_path)
    monkeypatch.setattr(accelerators, "free_memory", lambda: need - 1)
    with pytest.raises(
        ValueError, match=r"Received: --image_size=8x8 and 15 im"
    ):
        read(tmp_path)


def test_a_stray_file_is_trained_on_and_does_not_prevent_knn(tmp_path):
    write(tmp_path, cats=10, dogs=5)
    Image.new("RGB", (9, 9)).save(tmp_path / "stray.png")
    images = read(tmp_path)
    assert images.train.num_examples == 16
    assert images.bank.num_examples + images.test.num_examples == 15
    assert _evaluation.why_no_knn(images) is None
    assert images.notes[0].endswith("on, without a class: 1 image")


def test_splits_are_for_training_and_testing(tmp_path):
    write(tmp_path, train__cats=9, train__dogs=6, Val__cats=2, Val__dogs=3)
    write(tmp_path, test=4)
    images = read(tmp_path)
    assert images.train.num_examples == images.bank.num_examples == 15
    assert images.test.num_examples == 5 and images.test.labelled
    assert images.notes[1] == (
        "Tests: images of the split validation, which are not trained on; not "
        "used: test (4)"
    )
    assert read(tmp_path, test_examples=2).test.num_examples == 2
    with pytest.raises(ValueError, match="at most the 5 labelled .*examples=6"):
        read(tmp_path, test_examples=6)


def test_a_split_without_classes_is_not_used_for_testing(tmp_path):
    write(tmp_path, train__cats=9, train__dogs=6, test=4)
    images = read(tmp_path)
    assert images.bank.num_examples + images.test.num_examples == 15
    assert images.notes[1].endswith("their names; not used: test (4)")


def test_test_images_of_classes_that_the_bank_lacks_are_left_out(tmp_path):
    write(tmp_path, train__a=4, train__b=4, val__b=3, val__c=2)
    images = read(tmp_path)
    assert images.test.labels.tolist() == [1, 1, 1]
    assert images.notes[2] == (
        "Tests left out: 2 images of classes that none of the images to "
        "compare with has: c"
    )


def test_a_split_of_other_classes_is_not_used_for_testing(tmp_path):
    write(tmp_path, train__a=4, train__b=4, val__c=2)
    images = read(tmp_path)
    assert images.bank.num_examples + images.test.num_examples == 8
    assert images.notes[1].endswith("their names; not used: validation (2)")


def test_a_folder_beside_splits_is_not_trained_on(tmp_path):
    write(tmp_path, train__a=4, train__b=4, val__b=3, unlabeled=2)
    images = read(tmp_path)
    assert images.train.num_examples == 8
    assert len(images.train.skipped) == 2


@pytest.mark.parametrize("other", ["val", "more"])
def test_a_note_names_a_split_that_is_taken_for_a_class(other, tmp_path):
    places = {"val": {"val": 9}, "more": {"train__a": 5, "more__b": 5}}[other]
    write(tmp_path, **places)
    name = {"val": "val", "more": "train"}[other]
    assert f"Note: {name} is taken for a class" in read(tmp_path).notes[1]


@pytest.mark.parametrize(
    ("counts", "note", "why"),
    [
        ({"": 12}, "Classes: none", "not all images to evaluate with"),
        ({"cats": 12}, "cats 12", "of one class"),
        (
            {"cats": 12, "": 3},
            "cats 12; also trained on, without a class: 3 images",
            "not all",
        ),
        ({"cats": 1, "dogs": 1}, "cats 1, dogs 1", "of one class"),
    ],
)
def test_a_note_says_why_there_is_no_knn(counts, note, why, tmp_path, capsys):
    write(tmp_path, **counts)
    images = read(tmp_path)
    assert note in images.notes[0]
    _data.print_notes(images)
    _evaluation.print_baselines(images, {})
    printed = capsys.readouterr().out
    assert images.notes[0] in printed
    assert "\nNo kNN: " in printed and why in printed


@pytest.mark.parametrize(
    ("count", "tests", "words"),
    [
        (1, None, r"Received: 1 image in .*\. Add images\.$"),
        (9, 9, "Received: 9 images in .*examples=9. Add .* fewer --test_ex"),
        (9, 99, "--test_examples=99"),
    ],
)
def test_too_few_images_to_evaluate_with_are_refused(
    count, tests, words, tmp_path
):
    write(tmp_path, cats=count)
    with pytest.raises(ValueError, match=words):
        read(tmp_path, test_examples=tests)


def test_too_many_train_examples_are_refused(tmp_path):
    write(tmp_path, cats=9)
    with pytest.raises(ValueError, match="At most 9 examples.*Received: 10"):
        read(tmp_path, train_examples=10)


def pretrain(**changes):
    """Trains for a few seconds; returns the run's folder."""
    small = dataclasses.replace(
        image_folder.DEFAULTS,
        image_size=32,
        backbone="resnet18",
        width=4,
        batch_size=8,
        queue_size=16,
        **{"epochs": 1, **changes},
    )
    return _pretrain.pretrain(small, "image_folder", image_folder.read)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow_networks")
def test_a_run_resumes_by_other_paths(tmp_path, monkeypatch, capsys):
    """Its images were moved, and a link leads to its folder.

    That lies among them, as by default, but nothing trains on its pictures.
    """
    names = {os.fsdecode(b"\xff{0}\n$"): 10, "\U0001f600 \u202e%s": 10}
    write(tmp_path / "images", **names)
    monkeypatch.chdir(tmp_path / "images")
    run = pretrain(images=".")
    assert run.parts[:2] == ("saved_models", "image_folder")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved" / run.parent)
    monkeypatch.chdir(tmp_path / "moved")
    again = f"../link/{run.name}"
    capsys.readouterr()
    pretrain(images=".", run_dir=again, epochs=2)
    assert "1 The folder of a run: " in capsys.readouterr().out
    about = json.loads((run / "settings.json").read_text())["data"]
    assert about["train_images"] == 20
    assert set(about["classes"]) == set(map(printable, names))
    Image.new("RGB", (32, 32)).save(next((tmp_path / "moved").glob("*/3.png")))
    with pytest.raises(ValueError, match=r"source=[0-9a-f]{12} \(it began wi"):
        pretrain(images=".", run_dir=again, epochs=3)


def test_a_flat_folder_is_evaluated_with_labeled_images(tmp_path):
    write(tmp_path, flat=20, few__cats=10, few__dogs=6)
    images = read(tmp_path / "flat", labelled=str(tmp_path / "few"))
    assert images.train.num_examples == 20
    assert _evaluation.why_no_knn(images) is None
    assert images.bank.num_examples + images.test.num_examples == 16
    assert images.test.class_names == ["cats", "dogs"]
    assert images.notes == [
        "Classes, the folders of --labelled: cats 10, dogs 6",
        f"Tests: images of --labelled={tmp_path / 'few'}",
    ]
    with pytest.raises(ValueError, match="--labelled must hold.*images of 0"):
        read(tmp_path / "few", labelled=str(tmp_path / "flat"))


def test_splits_of_labeled_images_stay_apart(tmp_path):
    write(tmp_path, flat=20, few__train__a=9, few__train__b=8, few__val__a=3)
    images = read(tmp_path / "flat", labelled=str(tmp_path / "few"))
    assert (images.bank.num_examples, images.test.num_examples) == (17, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow_networks")
def test_a_run_on_a_flat_folder_ends_with_knn_and_a_probe(
    tmp_path, monkeypatch, capsys
):
    """On the branches of a GPU, from images of different sizes."""
    monkeypatch.setattr(accelerators, "on_gpu", lambda: True)
    write(tmp_path, flat=20, few__cats=10, few__dogs=9)
    for i, path in enumerate((tmp_path / "flat").iterdir()):
        Image.open(path).crop((0, 0, 32, 20 + i % 12)).save(path)
    run = pretrain(
        images=str(tmp_path / "flat"),
        labelled=str(tmp_path / "few"),
        run_dir=str(tmp_path / "run"),
    )
    metrics = json.loads((run / "metrics.json").read_text())
    model = keras.saving.load_model(run / "model.keras")
    given = settings(tmp_path / "flat", labelled=str(tmp_path / "few"))
    images = image_folder.read(dataclasses.replace(given, image_size=32))
    bank, test = (
        features.extract(model, x.images) for x in (images.bank, images.test)
    )
    assert metrics["linear_probe"] == linear_probe.accuracy(
        bank, images.bank.labels, test, images.test.labels
    )
    assert "knn_trained" in metrics
    assert {path.name for path in run.iterdir()} == RUN_FILES
    printed = capsys.readouterr().out
    assert f"Linear probe, likewise: {metrics['linear_probe']:.3f}" in printed
