"""What all pictures share: colors, figures, frames."""

import numpy as np

from moco_keras import arguments

INK = "#22313f"
ACCENT = "#c0504d"
OTHER = "#3b75af"


def new_figure(nrows, ncols, figsize, **gridspec):
    """A figure of so many inches, and its grid of axes."""
    # A figure without pyplot: no window, whatever the machine.
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    grid = figure.subplots(nrows, ncols, squeeze=False, gridspec_kw=gridspec)
    return figure, grid


def as_rgb(images, value_range=(0, 255)):
    """Images as they are drawn: gray, or in the first three of their channels.

    Args:
        images: (..., H, W, C), any numbers.
        value_range: the values of black and of white.

    Returns:
        uint8 (..., H, W, 3).
    """
    images = np.asarray(images)
    if images.shape[-1] < 3:  # of two channels the first
        images = np.repeat(images[..., :1], 3, axis=-1)
    images = images[..., :3]
    low, high = value_range
    if images.dtype == "uint8" and (low, high) == (0, 255):
        return images
    images = (images.astype("float32") - low) * (255 / (high - low))
    return np.rint(np.clip(images, 0, 255)).astype("uint8")


def show(axes, picture, frame=None):
    """Shows a picture (H, W, C), pixels in [0, 255], in a frame of a color."""
    axes.axis("on")
    axes.imshow(as_rgb(picture))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame)
        spine.set_linewidth(2.5)


def save(figure, path, metadata=None):
    """Writes a PNG file."""
    figure.savefig(arguments.path(path=path), dpi=150, metadata=metadata)
