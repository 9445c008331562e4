"""The pictures on the page of a run, in words for those who cannot see them."""

from moco_keras import plotting
from moco_keras.recipes import _health
from moco_keras.system import ownership

_IMAGES = (
    (
        "views",
        "Views",
        "Images, and two views of each, as the training run cuts them.",
        "Eight test images above two random views of each.",
    ),
    (
        "neighbours",
        "Neighbors",
        "Test images, and beside each the bank images with the most similar "
        "features. A frame is blue if the classes are the same, red if not.",
        "Eight test images beside the images that are nearest to them.",
    ),
)


def of_run(place, metrics, epochs, setup, alarms):
    """The pictures of a run, as `plotting.report` takes them.

    Args:
        place: the folder of the results.
        metrics: of metrics.json, or None.
        epochs: dicts of history.csv.
        setup, alarms: what `alarms.find` takes and returns.
    """
    finished, metrics, pictures = metrics is not None, metrics or {}, []
    if epochs:
        chance = metrics.get("chance") or _health.chance(setup)

        def curves(path):
            plotting.curves(
                epochs,
                path,
                metrics.get("knn_raw_pixels"),
                metrics.get("knn_untrained"),
                chance,
            )

        pictures.append(
            _picture(
                "curves",
                "Curves",
                "A dotted line is what a guess reaches, or what the encoder is "
                "compared with. The loss often rises in the first epochs.",
                _about_curves(epochs),
                _drawn(place, "curves", finished, curves),
            )
        )
    measured = [row for row in epochs if "health_alignment" in row]
    if measured:
        pictures.append(
            _picture(
                "measures",
                "Measures of health",
                "Of a fixed sample of the training images, in inference mode. "
                "A dotted line is a value at best, or after a collapse.",
                _about_health(measured[-1]),
                _drawn(
                    place,
                    "health",
                    finished,
                    lambda path: plotting.health(epochs, path, setup, alarms),
                ),
            )
        )
    for name, *words in _IMAGES if finished else ():
        file = place / f"{name}.png"
        if file.exists():
            pictures.append(_picture(name, *words, file.read_bytes()))
    return pictures


def _picture(name, title, caption, alt, data):
    return {
        "name": name,
        "title": title,
        "caption": caption,
        "alt": alt,
        "data": plotting.data_uri(data),
    }


def _drawn(place, name, finished, draw):
    """The bytes of a picture that a run has drawn, or that is drawn now."""
    file = place / f"{name}.png"
    if finished and file.exists():
        return file.read_bytes()
    with ownership.scratch(place) as scratch:
        draw(scratch / file.name)
        return (scratch / file.name).read_bytes()


def _about_curves(epochs):
    """The curves in words."""
    sentences = []
    for name, words in (
        ("loss", "The loss goes"),
        ("contrastive_accuracy", "Contrastive accuracy goes"),
        ("knn", "kNN accuracy goes"),
    ):
        known = [row[name] for row in epochs if name in row]
        if known:
            sentences.append(f"{words} from {known[0]:.3f} to {known[-1]:.3f}.")
    return " ".join(sentences)


def _about_health(row):
    """The measures of an epoch in words."""
    return (
        f"In epoch {row['epoch']} alignment is {row['health_alignment']:.2f}, "
        f"uniformity {row['health_uniformity']:.2f}; of the projections, the "
        f"effective rank is {row['health_rank_projections']:.1f}, the "
        f"deviation {row['health_deviation_projections']:.2f}."
    )
