"""Help, exit codes and output streams of the programs."""

import importlib
import os
import signal
from pathlib import Path

import programs
import pytest
from programs import ROOT

from moco_keras.recipes import _cli


@pytest.mark.parametrize(
    "program",
    [
        *(p.stem for p in (ROOT / "moco_keras/recipes").glob("[a-z]*.py")),
        "benchmark.__main__",
    ],
)
def test_help_has_an_example_and_short_lines(program):
    doc = importlib.import_module(f"moco_keras.recipes.{program}").__doc__
    name = program.removesuffix(".__main__")
    assert f"    python -m moco_keras.recipes.{name}" in doc
    assert all(len(line) <= 80 for line in doc.splitlines())


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--help=true", "absl, too"), ("--helpxml", "<AllFlags>")],
)
def test_help_is_printed_with_exit_code_0(flag, words, capsys):
    with pytest.raises(SystemExit) as caught:
        _cli.parse_flags(["program", flag])
    assert caught.value.code in (None, 0)
    assert words in capsys.readouterr().out


@pytest.fixture
def make_output():
    """Makes a program's output stream of a pipe; returns it and its reader."""
    made = []

    def make(**kwargs):
        reader, writer = os.pipe()
        made.append(os.fdopen(writer, "w", **kwargs))
        made.append(_cli._lasting(made[-1]))
        return made[-1], os.fdopen(reader)

    yield make
    for file in reversed(made):
        file.close()


@pytest.mark.parametrize("buffering", [-1, 1])
def test_printing_continues_after_its_reader_closes(buffering, make_output):
    out, reader = make_output(buffering=buffering)
    print("a line", file=out, flush=True)
    assert reader.readline() == "a line\n"
    reader.close()
    for _ in range(3):
        print("x" * 100_000, file=out)
        out.flush()


def test_other_errors_of_printing_are_raised():
    with open("/dev/full", "w") as full:  # noqa: PTH123 (it is a device)
        out = _cli._lasting(full)
        with pytest.raises(OSError, match="No space left"):
            print("x" * 100_000, file=out, flush=True)
        out.detach().detach()  # so that it is not written again


def test_characters_that_a_terminal_cannot_show_are_escaped(make_output):
    out, reader = make_output(encoding="ascii")
    print("caf\xe9 \u732b \udcff ━━", file=out, flush=True)
    assert reader.readline() == "caf\\xe9 \\u732b \\udcff ==\n"
    reader.close()


def test_a_missing_stream_stays_missing():
    assert _cli._lasting(None) is None


@pytest.mark.slow
def test_ctrl_c_during_startup_ends_a_program_quietly(ctrl_c):
    process = programs.start("embed")
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtensorflow" not in maps.read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    ended = programs.finish(process)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
