"""Pre-trains an encoder on a folder of images of your own, labelled or not.

    python -m moco_keras.recipes.image_folder --images=FOLDER

JPEG, PNG, GIF and BMP files of any sizes, in folders of any depth. What cannot
be decoded is skipped and listed. Where the images are in a folder for each
class, a kNN follows the training: by some of the images that it trains on, but
without their names.

The method is MoCo v2. Encoder, image size, batch, queue and epochs are chosen
to fit the images and the device where their flags are not given. They are
printed, and a resumed run keeps them.
"""

import dataclasses

from moco_keras import data
from moco_keras.arguments import COUNT
from moco_keras.recipes import _pretrain, _settings


@dataclasses.dataclass(frozen=True)
class FolderSettings(_settings.Settings):
    """Those of all programs, and of a folder."""

    images: str | None = _settings.path(None, "the folder of images")
    image_size: int | None = _settings.setting(
        None, "side of the views, in pixels", COUNT
    )
    on_bad_image: str = _settings.setting(
        "skip",
        "what to do with files that cannot be decoded: skip and list them, or "
        "end with an error at the first",
        choices=("skip", "error"),
    )


def read(settings):
    """The folder as a stream, and some of its images to evaluate with."""
    if not settings.images:
        raise ValueError("--images must be given: the folder of your images.")
    stream = data.read_folder(
        settings.images, settings.train_examples, settings.on_bad_image
    )
    tests = settings.test_examples or min(1000, -(-stream.num_examples // 5))
    some = stream.load(
        min(5 * tests, stream.num_examples), image_size=settings.image_size
    )
    test, bank = (
        some._replace(images=some.images[part], labels=some.labels[part])
        for part in (slice(tests), slice(tests, None))
    )
    return _pretrain.Images(stream, bank, test)


_DEFAULTS = FolderSettings(
    **dict.fromkeys(_settings.FITTED),
    head="mlp",
    augmentation="moco_v2",
    min_area=0.2,
    temperature=0.2,
    l2=1e-4,
)

if __name__ == "__main__":
    _pretrain.run("image_folder", read, _DEFAULTS)
