"""The version, which all else may import."""

__version__ = "0.1.0"
