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


def show(axes, picture, frame=None):
    """Shows a picture (H, W, 3), pixels in [0, 255], in a frame of a color."""
    axes.axis("on")
    axes.imshow(np.clip(np.asarray(picture), 0, 255).astype("uint8"))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame)
        spine.set_linewidth(2.5)


def save(figure, path, metadata=None):
    """Writes a PNG file."""
    figure.savefig(arguments.path(path=path), dpi=150, metadata=metadata)
