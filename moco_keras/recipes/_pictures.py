"""Drawing what a program's results do not depend on."""

import contextlib
import sys

from moco_keras.system import ownership


def draw(path, draw_to):
    """Draws a picture, or says why it could not be drawn.

    Args:
        path: of the file, a `Path`.
        draw_to: function that draws it to a path.
    """
    with warned(path.name), ownership.scratch(path.parent) as place:
        draw_to(place / path.name)
        (place / path.name).replace(path)


@contextlib.contextmanager
def warned(name):
    """Has an error only be told, because results do not depend on this.

    Args:
        name: of what is drawn.
    """
    try:
        yield
    except Exception as error:  # of fonts, names, the disk
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        print(
            f"Warning: {name} was not drawn: {reason}. All else that was asked "
            "for is there.",
            file=sys.stderr,
        )
