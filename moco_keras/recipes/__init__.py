"""Programs: `python -m moco_keras.recipes.cifar10 --help`."""
