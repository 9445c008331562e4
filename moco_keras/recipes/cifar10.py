"""Pre-trains an encoder on CIFAR-10, without its labels.

    python -m moco_keras.recipes.cifar10
    python -m moco_keras.recipes.cifar10 --flagfile=recipes/cifar10_hour.flags

The defaults are those of the paper's CIFAR-10 notebook: 200 epochs, for a GPU.
The second command needs none, and takes an hour, or the minutes that are given
after the file: --minutes=10. Other settings are in the top-level folder
recipes/.
"""

from moco_keras.recipes import _data, _pretrain

if __name__ == "__main__":
    _pretrain.run("cifar10", _data.by_name("cifar10"))
