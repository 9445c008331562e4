"""Text that users choose, such as the names of folders, in pictures."""

import bisect
import math

from moco_keras.system.paths import printable


class Lettering:
    r"""Writes any text literally: nothing in it is markup.

    A character that matplotlib's own font lacks is drawn by the first installed
    font that has it. What no font has, and what is not a character, is written
    as in Python's strings: "\u732b", "\n", "\xff".

    Args:
        texts: all that are to be written.
    """

    def __init__(self, texts):
        from matplotlib import font_manager, rcParams
        from matplotlib.font_manager import FontProperties

        missing = {c for text in texts for c in printable(text)}
        self._families = list(rcParams["font.family"])
        fonts = [
            (name, font_manager.findfont(FontProperties(family=[name])))
            for name in self._families
        ]
        fonts += sorted(
            (entry.name, entry.fname)
            for entry in font_manager.fontManager.ttflist
            if (entry.style, entry.weight, entry.stretch)
            == ("normal", 400, "normal")
            # It draws a box for every character.
            and not entry.name.startswith("Last Resort")
        )
        for name, path in fonts:
            if missing and (found := _drawn_by(path, missing)):
                missing -= found
                if name not in self._families:
                    self._families.append(name)
        self._missing = missing

    @property
    def style(self):
        """Arguments of matplotlib with which a text is drawn literally."""
        return {
            "family": self._families,
            "parse_math": False,
            "usetex": False,
        }

    def shorten(self, text, length):
        """The text without its middle, if it has more characters."""
        return self._shortened(text, length, len)

    def title(self, axes, lines, width, **style):
        """Sets the title of a picture.

        Args:
            axes: matplotlib's, of the picture.
            lines: the text of each line. The middle of a long one is left out.
            width: largest width of a line, in inches.
            style: further arguments of `axes.set_title`.
        """
        title = axes.set_title("", **self.style, **style)

        def width_of(text):
            title.set_text(text)
            return title.get_window_extent().width / axes.figure.dpi

        title.set_text(
            "\n".join(self._shortened(line, width, width_of) for line in lines)
        )

    def _shortened(self, text, width, width_of):
        shown = [
            c.encode("ascii", "backslashreplace").decode()
            if c in self._missing
            else c
            for c in printable(text)
        ]

        def without_middle(kept):
            end = len(shown) - kept // 2
            return "".join([*shown[: math.ceil(kept / 2)], "...", *shown[end:]])

        whole = "".join(shown)
        if width_of(whole) <= width:
            return whole
        kept = bisect.bisect(
            range(1, len(shown)),
            width,
            key=lambda kept: width_of(without_middle(kept)),
        )
        return without_middle(kept)


def _drawn_by(path, characters):
    """The characters for which a font's file has outlines."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
        if not font.scalable:  # of pictures, which matplotlib does not draw
            return set()
        font.set_size(10, 72)
        return {c for c in characters if font.get_char_index(ord(c))}
    except (OSError, RuntimeError):  # it is gone, or of an unknown kind
        return set()
