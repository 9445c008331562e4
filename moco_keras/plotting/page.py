"""The page of a run: one file of HTML, which loads nothing from elsewhere."""

import base64
import functools
from importlib import resources


def report(path, **content):
    """Writes the page of a run.

    Every text is shown as it is, whatever characters it has.

    Args:
        path: of the HTML file.
        content: `title`, a text.
            `summary`, sentences.
            `alarms`, `evaluation.alarms.Alarm`s.
            `pictures`, dicts of "name", "title", "caption", "alt" and "data",
            what `data_uri` returns.
            `map`, None or what `embedding_map` returns.
            `few_labels`, dicts of "amount", "method" and "accuracy".
            `use`, pairs of a sentence and code.
            `columns`, names of numbers of each epoch; `epochs`, lists of them.
            `settings`, pairs of a name and a value.
    """
    text = _template().render(**content)
    # Names of files may have bytes that are no text.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def data_uri(data, kind="png"):
    """The bytes of a picture, as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@functools.cache
def _template():
    import jinja2

    text = resources.files("moco_keras.plotting").joinpath("page.html")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.from_string(text.read_text(encoding="utf-8"))
