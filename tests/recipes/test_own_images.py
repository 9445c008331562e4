"""All programs on a folder of images as a microscope writes them.

They have 5 channels of 12 bits, are not square, and two of them are damaged.
"""

import csv
import dataclasses
import json

import numpy as np
import pytest
from programs import TINY

from moco_keras import augmentations, load_encoder
from moco_keras.recipes import (
    _pretrain,
    classify,
    embed,
    few_labels,
    finetune,
    image_folder,
)

tifffile = pytest.importorskip("tifffile")
DAMAGED = {"class0/04.tif", "class1/09.tif"}


def write(folder):
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 4096, (10 + i % 2, 20, 5), "uint16")
        pixels[..., 3] = 3000 * (i % 2)
        path = folder / f"class{i % 2}" / f"{i:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            path,
            pixels,
            photometric="minisblack",
            planarconfig="contig",
            compression="zlib",
        )
    for name in DAMAGED:
        contents = bytearray((folder / name).read_bytes())
        middle = len(contents) // 2
        contents[middle : middle + 64] = bytes(64)
        (folder / name).write_bytes(contents)


def listed(path):
    """The files in a list of what was left out."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all("Invalid TIFF" in row["reason"] for row in rows)
    return {row["file"][-len("class0/00.tif") :] for row in rows}


@pytest.mark.slow
def test_all_programs_take_them(tmp_path, shallow_networks, capsys):
    write(tmp_path / "images")
    images, run = str(tmp_path / "images"), tmp_path / "run"
    settings = dataclasses.replace(
        image_folder.DEFAULTS,
        **{**TINY, "knn_every": 2},
        images=images,
        image_size="8x16",
        value_range="0,4095",
        run_dir=str(run),
    )
    with pytest.warns(UserWarning, match="^Damaged, and skipped"):
        _pretrain.pretrain(settings, "image_folder", image_folder.read)
    record = json.loads((run / "settings.json").read_text())
    assert record["settings"]["image_size"] == "8x16"
    assert record["data"]["image_shape"] == [8, 16, 5]
    assert listed(run / "damaged.csv") == DAMAGED
    assert "Damaged images, see damaged.csv: 2" in capsys.readouterr().out
    encoder = load_encoder(run)
    assert encoder.exported_dtype == "uint16"
    with pytest.raises(ValueError, match="uint8 images with one or three"):
        load_encoder(run, encoded=True)

    out = tmp_path / "features.npz"
    query = str(tmp_path / "images/class0/00.tif")
    embed.embed(
        embed.EmbedSettings(str(run), images, str(out), neighbours=query)
    )
    with np.load(out) as found:
        files, features = found["files"].tolist(), found["features"]
    assert len(files) == 38 and not DAMAGED & set(files)
    assert listed(tmp_path / "features.skipped.csv") == DAMAGED
    row = files.index("class1/01.tif")
    pixels = tifffile.imread(tmp_path / "images/class1/01.tif")
    center = np.round(augmentations.evaluation((8, 16))(pixels)).astype(
        "uint16"
    )
    np.testing.assert_allclose(
        features[row], encoder(center[None])[0], rtol=1e-4, atol=1e-4
    )
    assert "are drawn in" in capsys.readouterr().out

    finetune.finetune(
        finetune.FinetuneSettings(
            encoder=str(run),
            data=images,
            out=str(tmp_path / "tuned"),
            epochs=1,
        )
    )
    assert "taken as images: 2\n  2 Invalid TIFF" in capsys.readouterr().out
    named = tmp_path / "labels.csv"
    classify.classify(
        classify.ClassifySettings(
            classifier=str(tmp_path / "tuned"), images=images, out=str(named)
        )
    )
    assert len(named.read_text().splitlines()) == 39
    probed = tmp_path / "probed.csv"
    capsys.readouterr()
    classify.classify(
        classify.ClassifySettings(
            encoder=str(run), labelled=images, images=images, out=str(probed)
        )
    )
    assert capsys.readouterr().out.count("taken as images: 2") == 2
    few_labels.few_labels(
        few_labels.FewLabelsSettings(
            run_dir=str(run),
            data=images,
            labels_per_class="2",
            draws=1,
            steps=2,
        )
    )
    assert (run / "few_labels.png").exists()
