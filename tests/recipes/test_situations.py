"""Each program in each situation: the table of docs/reliability.md."""

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from programs import ROOT
from situations import ODD, PROGRAMS, contents

pytestmark = pytest.mark.slow


@pytest.fixture(
    # One process runs all situations of a program.
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(name))
        for name in PROGRAMS
    ],
    scope="module",
)
def prepared(request, tmp_path_factory):
    """A program, and a folder with finished results and unfinished work."""
    keras.config.set_dtype_policy("float32")  # as `seed` does, which is later
    program = PROGRAMS[request.param]
    folder = tmp_path_factory.mktemp("prepared") / "folder"
    folder.mkdir()
    program.prepare(folder)
    return request.param, program, folder


@pytest.fixture(scope="module")
def expected(prepared, tmp_path_factory):
    """The outcome of the program when nothing interrupts it."""
    _, program, folder = prepared
    undisturbed = tmp_path_factory.mktemp("undisturbed") / "folder"
    copy(folder, undisturbed)
    program.run(undisturbed)
    return program.outcome(undisturbed)


def copy(folder, other):
    shutil.copytree(folder, other, symlinks=True, dirs_exist_ok=True)


@pytest.fixture
def situation(prepared, tmp_path):
    """A copy of the folder for one situation."""
    name, program, folder = prepared
    copy(folder, tmp_path / "folder")
    return name, program, tmp_path / "folder"


@pytest.fixture
def disk(situation, make_disk):
    """The folder on a separate disk, and a function that remounts the disk."""
    _, program, folder = situation
    disk_folder, remount = make_disk("64m")
    copy(folder, disk_folder)
    return program, disk_folder, remount


def assert_refused(program, folder, match, **changes):
    """Checks that a command is refused and leaves finished results intact."""
    before = program.finished(folder)
    with pytest.raises((OSError, ValueError), match=match):
        program.run(folder, **changes)
    assert program.finished(folder) == before


def assert_completes(program, folder, expected):
    """Checks that the outcome is that of an undisturbed command."""
    program.run(folder)
    (arrays, rest), (others, same) = program.outcome(folder), expected
    assert rest == same
    assert len(arrays) == len(others) > 0
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)
    paths = folder.rglob("*")
    assert not [p for p in paths if re.search("partial|lock", p.name)]


def test_a_second_process_and_a_kill(situation, expected):
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
            assert_refused(
                program, folder, rf"(?s)process {process.pid} .*since"
            )
        else:
            program.run(folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert program.finished(folder) == before
    assert_completes(program, folder, expected)


def test_a_read_only_and_a_full_disk(disk, expected):
    program, folder, remount = disk
    remount("ro")
    assert_refused(program, folder, "Read-only|read-only|written to")
    remount("rw")
    room = os.statvfs(folder)
    size = room.f_bavail * room.f_frsize
    for left in (0, program.room):  # from the start, and later
        (folder / "filler").write_bytes(bytes(size - left))
        assert_refused(program, folder, "No space left on device|make room")
    (folder / "filler").unlink()
    assert_completes(program, folder, expected)


def test_a_damaged_file(situation, expected, capfd):
    _, program, folder = situation
    repair = program.damage(folder)
    if repair:
        assert_refused(program, folder, "model.keras")
        repair()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_completes(program, folder, expected)
    if not repair:
        out, err = capfd.readouterr()
        assert "damaged" in out + err + "".join(str(w.message) for w in caught)


def test_a_corrected_flag_and_a_moved_folder(
    situation, expected, tmp_path, monkeypatch
):
    """Renamed, and then reached by a link from another working folder."""
    _, program, folder = situation
    before = program.finished(folder)
    held = contents(folder), {*folder.rglob("*")}
    with pytest.raises((OSError, ValueError), match="--|version"):
        program.mistake(folder)
    assert (contents(folder), {*folder.rglob("*")}) == held
    folder.rename(tmp_path / ODD)
    assert program.finished(tmp_path / ODD) == before
    monkeypatch.chdir(tmp_path)
    assert_completes(program, Path(ODD), expected)
    (tmp_path / "link").symlink_to(ODD)
    monkeypatch.chdir(ROOT)
    if program.finishes:
        assert_refused(program, tmp_path / "link", "finished")
    else:
        assert_completes(program, tmp_path / "link", expected)
