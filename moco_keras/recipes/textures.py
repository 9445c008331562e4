"""Pre-trains an encoder on textures, which need no download: `make demo`.

    python -m moco_keras.recipes.textures

The data set draws itself: ten kinds of pattern, 32x32 RGB, 20,000 images to
train on and 2,000 to test. Minutes on a CPU.
"""

from moco_keras.recipes import _data, _pretrain, _settings

_DEFAULTS = _settings.Settings(
    stem="imagenet",
    width=32,
    min_area=0.3,
    batch_size=256,
    epochs=8,
    queue_size=1024,
    momentum=0.95,
    temperature=0.2,
    knn_every=2,
)

if __name__ == "__main__":
    _pretrain.run("textures", _data.by_name("textures"), _DEFAULTS)
