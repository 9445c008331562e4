"""What all pictures share: colors, figures, frames."""

from moco_keras import arguments
from moco_keras.pixel_format import as_rgb

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
    """Shows a picture (H, W, C), pixels in [0, 255], in a frame of a color."""
    axes.axis("on")
    axes.imshow(as_rgb(picture))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame)
        spine.set_linewidth(2.5)


def say_channels(figure, channels):
    """Writes below pictures which channels of images they show.

    Args:
        figure: that of the pictures, drawn by `as_rgb`.
        channels: number of channels of the images.
    """
    if channels not in (1, 3):
        shown = "channels 1, 2 and 3 are"
        if channels == 2:
            shown = "channel 1 is"
        figure.text(
            0.5,
            0.005,
            f"Of {channels} channels, {shown} shown.",
            ha="center",
            color=INK,
            fontsize=9,
        )


def save(figure, path, metadata=None):
    """Writes a PNG file."""
    figure.savefig(arguments.path(path=path), dpi=150, metadata=metadata)
