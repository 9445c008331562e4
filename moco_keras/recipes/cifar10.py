"""Pre-trains an encoder on CIFAR-10, without its labels.

    python -m moco_keras.recipes.cifar10
    python -m moco_keras.recipes.cifar10 --flagfile=recipes/cifar10_small.flags

The defaults are those of the paper's CIFAR-10 notebook: 200 epochs, for a GPU.
Settings of other sizes are in the top-level folder recipes/.
"""

from moco_keras.recipes import _data, _pretrain

if __name__ == "__main__":
    _pretrain.run("cifar10", _data.by_name("cifar10"))
