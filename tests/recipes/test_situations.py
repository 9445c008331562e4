"""Each program in each situation: the table of docs/reliability.md."""

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from programs import ROOT
from situations import ODD, PROGRAMS

pytestmark = pytest.mark.slow


@pytest.fixture(params=PROGRAMS, scope="module")
def prepared(request, textures_dir, tmp_path_factory):
    """A program, and a folder with finished results and begun work."""
    os.environ["TEXTURES_DIR"] = str(textures_dir)
    program = PROGRAMS[request.param]
    folder = tmp_path_factory.mktemp("prepared") / "folder"
    folder.mkdir()
    program.prepare(folder)
    return request.param, program, folder


@pytest.fixture(scope="module")
def expected(prepared, tmp_path_factory):
    """What the program ends with when it is left alone."""
    _, program, folder = prepared
    alone = tmp_path_factory.mktemp("alone") / "folder"
    copy(folder, alone)
    program.again(alone)
    return program.outcome(alone)


def copy(folder, other):
    shutil.copytree(folder, other, symlinks=True, dirs_exist_ok=True)


@pytest.fixture
def situation(prepared, tmp_path):
    """A copy of the folder, for one situation."""
    name, program, folder = prepared
    copy(folder, tmp_path / "folder")
    return name, program, tmp_path / "folder"


@pytest.fixture
def disk(situation, make_disk):
    """The same on a disk of its own, and a function that remounts it."""
    _, program, folder = situation
    place, remount = make_disk("64m")
    copy(folder, place)
    return program, place, remount


def refuse(program, folder, match, **changes):
    """Sees that a command is refused, and what was finished is intact."""
    before = program.finished(folder)
    with pytest.raises((OSError, ValueError), match=match):
        program.again(folder, **changes)
    assert program.finished(folder) == before


def complete(program, folder, expected):
    """Sees that the command does what it does when it is left alone."""
    program.again(folder)
    (arrays, rest), (others, same) = program.outcome(folder), expected
    assert rest == same
    assert len(arrays) == len(others) > 0
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)
    left = [p for p in folder.rglob("*") if re.search("partial|lock", p.name)]
    assert not left


def test_killed_beside_a_second_process(situation, expected):
    name, program, folder = situation
    before = program.finished(folder)
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests/helpers/situations.py", name, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert any("PAUSED" in line for line in process.stdout)
        if program.owns:
            refuse(program, folder, rf"(?s)process {process.pid} .*since")
        else:
            program.again(folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert program.finished(folder) == before
    complete(program, folder, expected)


def test_a_full_disk(disk, expected):
    program, folder, _ = disk
    room = os.statvfs(folder)
    size = room.f_bavail * room.f_frsize
    for left in (0, program.room):  # at once, and on the way
        (folder / "filler").write_bytes(bytes(size - left))
        refuse(program, folder, "No space left on device|make room")
    (folder / "filler").unlink()
    complete(program, folder, expected)


def test_read_only(disk, expected):
    program, folder, remount = disk
    remount("ro")
    refuse(program, folder, "Read-only|read-only|written to")
    remount("rw")
    complete(program, folder, expected)


def test_a_damaged_file(situation, expected, capfd):
    _, program, folder = situation
    mend = program.damage(folder)
    if mend:
        refuse(program, folder, "model.keras")
        mend()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        complete(program, folder, expected)
    if not mend:
        out, err = capfd.readouterr()
        assert "damaged" in out + err + "".join(str(w.message) for w in said)


def test_a_corrected_flag(situation):
    _, program, folder = situation
    before = program.finished(folder)
    with pytest.raises((OSError, ValueError), match="--|version"):
        program.mistake(folder)
    program.correct(folder)
    after = program.finished(folder)
    assert {path: after[path] for path in before} == before


def test_a_moved_folder(situation, expected, tmp_path, monkeypatch):
    """To any name, and then reached by a link, from another working folder."""
    _, program, folder = situation
    before = program.finished(folder)
    folder.rename(tmp_path / ODD)
    assert program.finished(tmp_path / ODD) == before
    monkeypatch.chdir(tmp_path)
    complete(program, Path(ODD), expected)
    (tmp_path / "link").symlink_to(ODD)
    monkeypatch.chdir(ROOT)
    if program.ends:
        refuse(program, tmp_path / "link", "finished")
    else:
        complete(program, tmp_path / "link", expected)
