"""The benchmark: `python -m moco_keras.recipes.benchmark`."""
