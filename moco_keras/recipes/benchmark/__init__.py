"""Measures how fast everything is: `python -m moco_keras.recipes.benchmark`."""
