"""What the doctor says: a page of text, and a file of flags."""

import itertools
import shlex
import textwrap
from pathlib import Path

from moco_keras.distribution import accelerators
from moco_keras.files.progress import duration
from moco_keras.recipes import _doctor_findings
from moco_keras.recipes._memory import gigabytes

_COLUMNS = 80


def print_findings(found, numbers):
    """Prints what is there, and what is to be mended.

    Args:
        found: `_doctor_look.Found`.
        numbers: what `_doctor_findings.summary` returned.
    """
    print(f"\nThe images of {found.name}")
    _print_rows(_doctor_findings.lines(found, numbers))
    for remark in _doctor_findings.remarks(numbers):
        print(_wrapped(remark, "  ! "))


def print_advice(found, advice, cost, flags):
    """Prints the advice, with its reasons and what it costs.

    Args:
        found: `_doctor_look.Found`.
        advice: `_doctor_advice.Advice`.
        cost: that of doctor.json.
        flags: path of the file of flags.
    """
    print("\nAdvice")
    _print_rows(
        (f"--{name}={getattr(advice.settings, name)}", why)
        for name, why in advice.reasons.items()
    )
    print(f"\nOn this machine ({accelerators.describe()})")
    _print_rows(_cost_rows(advice.settings, cost))
    command = f"python -m moco_keras.recipes.{found.recipe}"
    print(f"\nTo train:\n  {command} --flagfile={shlex.quote(str(flags))}")


def _cost_rows(settings, cost):
    of_epoch, steps = cost["seconds_of_an_epoch"], cost["steps_of_an_epoch"]
    epochs = settings.epochs
    free = accelerators.free_memory()
    of_free = f", of {gigabytes(free)} that are free" if free else ""
    need = cost["bytes_of_memory"]
    need = "not known" if need is None else gigabytes(need)
    reading = cost["seconds_of_reading_a_step"] / cost["seconds_of_a_step"]
    share = f"{min(reading, 1):.0%} of the time of a step"
    limit = f"computing: reading images and cutting views takes {share}"
    if cost["limited_by_reading"]:
        limit = (
            f"reading: to read images and to cut views takes {share}. Smaller "
            "copies of large images, or more processor cores, would help"
        )
    return [
        (
            "time",
            f"{duration(of_epoch)} an epoch of {steps:,} "
            f"step{'s' * (steps != 1)}, {duration(epochs * of_epoch)} for "
            f"{epochs:,} epoch{'s' * (epochs != 1)}, without evaluations",
        ),
        ("memory", need + of_free),
        ("limit", limit),
    ]


def flag_file(found, advice):
    """The text of doctor.flags.

    Args:
        found: `_doctor_look.Found`.
        advice: `_doctor_advice.Advice`.
    """
    lines = [
        f"# How to train on {found.num_images:,} images of {found.name}.",
        f"#   python -m moco_keras.recipes.{found.recipe} --flagfile=FILE",
    ]
    if found.folder is not None:
        folder = str(found.folder.absolute())
        if folder.isprintable() and folder == folder.strip():
            lines.append(f"--images={folder}")
        else:
            lines.append("# Also give --images: a file cannot hold this name.")
    elif found.data_dir:
        lines.append(f"--data_dir={Path(found.data_dir).absolute()}")
    reasons = advice.reasons
    for why, names in itertools.groupby(reasons, reasons.get):
        lines += textwrap.wrap(
            f"{why}.", _COLUMNS, initial_indent="# ", subsequent_indent="# "
        )
        lines += [
            f"--{name}={getattr(advice.settings, name)}" for name in names
        ]
    return "\n".join(lines) + "\n"


def _print_rows(rows):
    """Prints names with texts, which may have several lines."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        for line in text.splitlines():
            print(_wrapped(line, f"  {name:<{width}}  "))
            name = ""


def _wrapped(text, begin):
    return textwrap.fill(
        text,
        _COLUMNS,
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_on_hyphens=False,
        break_long_words=False,
    )
