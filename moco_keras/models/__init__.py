"""Backbones with their heads, and the state of models."""
