"""What a run leaves in its folder, and says at its end."""

import json

import moco_keras
from moco_keras import plotting
from moco_keras.evaluation import alarms, knn
from moco_keras.recipes import (
    _board,
    _evaluation,
    _pictures,
    _publishing,
    _record,
    _report,
    _run_files,
)
from moco_keras.system import paths
from moco_keras.training import checkpoint_files


def write(folder, model, images, features, metrics, timing):
    """Writes what a run is for; its last checkpoint stays, to continue it.

    Args:
        folder: of the run.
        model: the trained `MoCo`.
        images: `_data.Images`.
        features: of their bank and of their test images, (N, D) and (M, D).
        metrics: of metrics.json.
        timing: of timing.json.
    """
    print("\nWriting the encoder, the model and pictures ...", flush=True)
    training = _record.training_summary(_record.read(folder), metrics)
    with _publishing.results(folder) as place:
        moco_keras.export_encoder(model, place / "encoder", training=training)
        model.save(place / "model.keras")
        _run_files.write_json(place / "timing.json", timing)
        _run_files.write_json(place / "metrics.json", metrics)
        _draw(place, model, images, features, metrics)
        _pictures.draw(
            place / _run_files.REPORT,
            lambda path: _report.write(folder, path, place),
        )
    checkpoint_files.CheckpointFiles(folder / "checkpoints").keep(1)
    logs, last = folder / "logs", len(metrics["history"]) - 1
    with _pictures.warned("TensorBoard's part"), paths.plain(logs) as plain:
        _board.write_pictures(folder, plain, last)
        file = folder / _run_files.MAP
        if file.exists() and (found := json.loads(file.read_text())):
            _board.write_embeddings(plain, features[1], found)


def _draw(folder, model, images, features, metrics):
    """Draws what it can: a run is complete without its pictures."""
    _, bank, test, _ = images
    bounds = model.pixels.bounds

    def drawn_as(pixels):
        return plotting.as_rgb(pixels, bounds)

    some = test.images[:8]
    shown, channels = drawn_as(some), some.shape[-1]

    def curves(path):
        plotting.curves(
            metrics["history"],
            path,
            metrics.get("knn_raw_pixels"),
            metrics.get("knn_untrained"),
            metrics.get("chance"),
        )

    def health(path):
        of_run = metrics["health"]
        plotting.health(
            metrics["history"],
            path,
            alarms.Setup(**of_run["setup"]),
            [alarms.Alarm(**alarm) for alarm in of_run["alarms"]],
        )

    def views(path):
        im_q, im_k = (drawn_as(model.augmenter(some)) for _ in range(2))
        plotting.views(shown, im_q, im_k, path, channels)

    def neighbours(path):
        bank_features, test_features = features
        k = min(5, len(bank.images))
        _, rows = knn.nearest(bank_features, test_features[:8], k)
        plotting.neighbours(
            shown,
            test.labels[:8],
            drawn_as(bank.images[rows]),
            bank.labels[rows],
            test.class_names if "knn_trained" in metrics else [],
            path,
            channels,
        )

    def make_map(path):
        found = plotting.embedding_map(
            features[1],
            drawn_as(test.images),
            test.labels,
            test.class_names,
        )
        _run_files.write_json(path, found)

    drawn = [curves, views, neighbours]
    if "health" in metrics:
        drawn.append(health)
    for draw in drawn:
        _pictures.draw(folder / f"{draw.__name__}.png", draw)
    _pictures.draw(folder / _run_files.MAP, make_map)


def print_summary(metrics, bank, images_per_second, folder):
    """Prints how a run ended."""
    if "knn_trained" in metrics:
        k = _evaluation.describe_k(bank)
        print(f"\nkNN ({k}), share of test images right")
        for name in ("raw_pixels", "untrained", "trained"):
            print(f"  {name.replace('_', ' '):<12}{metrics[f'knn_{name}']:.3f}")
    if "linear_probe" in metrics:
        print(f"Linear probe, likewise: {metrics['linear_probe']:.3f}")
    if images_per_second:
        print(f"{images_per_second:.0f} images a second")
    print(*metrics["verdict"], sep="\n")
    print(f"The encoder, its record and its pictures are in {folder}")
    print(f"The page to look at is {folder / _run_files.REPORT}")
