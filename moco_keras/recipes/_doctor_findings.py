"""What the doctor found in a data set, in numbers and in words."""

import collections

import numpy as np

from moco_keras.evaluation import alarms, survey
from moco_keras.files import scanning
from moco_keras.system.paths import printable

_NAMED = 3  # examples, sizes and classes, in what is printed
_FEW = 1000  # images
_ALIKE = 0.05  # of the images, that nearly equal others
_UNEQUAL = 10  # times as many images as another class


def summary(found):
    """Numbers on the images that were looked at, for doctor.json.

    Args:
        found: `_doctor_look.Found`.
    """
    looks = found.looks
    shorter = [min(x.header.height, x.header.width) for x in looks]
    copies, near = survey.copies(looks), survey.near_copies(looks)
    near[copies >= 0] = -1

    def count(values):
        return dict(collections.Counter(values).most_common())

    def pairs(first):
        rows = np.flatnonzero(first >= 0)
        return [[found.names[i], found.names[first[i]]] for i in rows]

    def named(is_so):
        return [
            name for name, x in zip(found.names, looks, strict=True) if is_so(x)
        ]

    names = found.stream.class_names
    labels = collections.Counter(int(i) for i in found.labels)
    return {
        "images": found.num_images,
        "looked_at": len(looks),
        "sizes": count(f"{x.header.width}x{x.header.height}" for x in looks),
        "shorter_side": {
            "least": min(shorter),
            "median": float(np.median(shorter)),
            "most": max(shorter),
        },
        "kinds": count(x.header.kind for x in looks),
        "channels": count(str(x.header.channels) for x in looks),
        "depths": count(
            str(8 * np.dtype(x.header.dtype).itemsize) for x in looks
        ),
        "skipped": [
            [printable(path), reason] for path, reason in found.stream.skipped
        ],
        "copies": pairs(copies),
        "near_copies": pairs(near),
        "blank": named(lambda x: x.blank),
        "gray": sum(x.gray for x in looks),
        "transparent": sum(x.header.alpha for x in looks),
        "classes": {
            (names[i] if i < len(names) else str(i)): labels[i]
            for i in sorted(labels)
            if i >= 0
        },
        "unlabeled": labels[-1],
    }


def lines(found, numbers):
    """The same in words: (name, text) of each line of the page.

    Args:
        found: `_doctor_look.Found`.
        numbers: what `summary` returned.
    """
    looked_at, side = numbers["looked_at"], numbers["shorter_side"]
    all_of, unseen = "all were looked at", ""
    if not found.whole:
        all_of = f"{looked_at:,} were looked at, in a random order"
        if found.folder is not None:
            all_of = f"an estimate: {all_of}"
        unseen = "; copies of images that were not looked at are not seen"

    def counted(some, examples=(), more=""):
        text = "none"
        if some:
            text = f"{len(some):,} ({len(some) / looked_at:.1%})"
        text += more
        return "\n".join([text, *examples[:_NAMED]])

    def pairs(some, sign):
        return counted(some, [f"{a} {sign} {b}" for a, b in some], unseen)

    return [
        ("images", f"{numbers['images']:,} to train on; {all_of}"),
        ("sizes", _shares(numbers["sizes"])),
        (
            "",
            f"the shorter side: {side['least']} to {side['most']} pixels, half "
            f"of them {side['median']:g} or less",
        ),
        ("kinds", _shares(numbers["kinds"])),
        ("channels", _shares(numbers["channels"])),
        ("depth", _shares(numbers["depths"], " bits")),
        ("left out", _reasons(found.stream.skipped)),
        ("copies", pairs(numbers["copies"], "=")),
        ("alike", pairs(numbers["near_copies"], "~")),
        ("blank", counted(numbers["blank"], numbers["blank"])),
        ("gray", counted(range(numbers["gray"]))),
        ("classes", _classes(numbers)),
    ]


def _shares(counts, unit=""):
    """Values with their shares, the most frequent ones first."""
    if len(counts) == 1:
        return f"{min(counts)}{unit}, all"
    total = sum(counts.values())
    some = [
        f"{value}{unit} ({count / total:.1%})"
        for value, count in list(counts.items())[:_NAMED]
    ]
    more = len(counts) - _NAMED
    return ", ".join(some) + (f", and {more} more" if more > 0 else "")


def _reasons(skipped):
    """How many files were left out, for each reason."""
    if not skipped:
        return "none"
    rows = scanning.summary(skipped).splitlines()[1:]
    return "\n".join([f"{len(skipped):,}", *(row.strip() for row in rows)])


def _classes(numbers):
    counts = numbers["classes"]
    if not counts:
        return "none, as no images are in a folder for each class"
    smallest, largest = (f(counts, key=counts.get) for f in (min, max))
    text = (
        f"{len(counts)}, of {counts[smallest]:,} ({smallest}) to "
        f"{counts[largest]:,} ({largest}) images"
    )
    if numbers["looked_at"] < numbers["images"]:
        text += " of those looked at"
    if numbers["unlabeled"]:
        text += f"; {numbers['unlabeled']:,} images in none"
    return text


def remarks(numbers):
    """Sentences on what is to be mended, or to be known, before training."""
    looked_at, depths = numbers["looked_at"], numbers["depths"]
    setup = alarms.Setup(
        num_images=numbers["images"],
        sample_size=looked_at,
        projection_dim=None,  # which these alarms do not ask for
        copies=len(numbers["copies"]) / looked_at,
        blank=len(numbers["blank"]) / looked_at,
    )
    found = [alarm.text for alarm in alarms.before_training(setup)]
    if len(numbers["near_copies"]) >= _ALIKE * looked_at:
        found.append(
            f"{len(numbers['near_copies']) / looked_at:.1%} of the images "
            "nearly equal others. In the queue they count as negatives of "
            "each other. Look at the pairs in doctor.json, and remove what "
            "shows the same."
        )
    if numbers["images"] < _FEW:
        found.append(
            f"Images to learn from: {numbers['images']:,}, which are few. Some "
            "thousands are a good beginning."
        )
    deep = sum(count for bits, count in depths.items() if int(bits) > 8)
    if 0 < deep < looked_at:
        found.append(
            f"Images of more than 8 bits a channel: {deep:,}. Only the upper 8 "
            "bits are read, because others have no more. Bring dark images to "
            "the full range before you train on them."
        )
    if numbers["transparent"]:
        found.append(
            f"Images with transparency: {numbers['transparent']:,}. It is "
            "ignored, and the colors below it are trained on."
        )
    if numbers["gray"] == looked_at and "3" in numbers["channels"]:
        found.append(
            "All images are gray, but stored in color, and they are read as "
            "three equal channels. With --channels=1 an encoder of one channel "
            "is trained."
        )
    counts = numbers["classes"].values()
    if counts and max(counts) >= _UNEQUAL * min(counts):
        found.append(
            f"The largest class has {max(counts) / min(counts):.0f} times as "
            "many images as the smallest. Training does not use the classes, "
            "but kNN prefers those with many images."
        )
    return found
