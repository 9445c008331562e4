import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from moco_keras.system import ownership

# Without TensorFlow, which takes seconds to import.
HOLD = f"import runpy; hold = runpy.run_path({ownership.__file__!r})['hold']\n"


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(params=["folder", "file.npz"])
def place(request, tmp_path):
    if request.param == "folder":
        (tmp_path / "folder").mkdir()
    return tmp_path / request.param


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_place_has_one_owner(place, tmp_path):
    """Not even the same process can hold it twice, in any thread."""
    refusals = []

    def refused():
        with pytest.raises(BlockingIOError, match="A cup must be") as error:
            with ownership.hold(place, "A cup"):
                pass
        refusals.append(str(error.value))

    with ownership.hold(place, "A cup") as alone:
        assert alone
        (lock,) = files(tmp_path)
        refused()
        thread = threading.Thread(target=refused)
        thread.start()
        thread.join()
        assert files(tmp_path) == {lock}
    assert len(refusals) == 2
    for message in refusals:
        assert f"process {os.getpid()} on {socket.gethostname()}" in message
        assert f"Received: {place}, which is held by" in message
    assert not files(tmp_path)
    with contextlib.suppress(ZeroDivisionError), ownership.hold(place, "A cup"):
        raise ZeroDivisionError
    with ownership.hold(place, "A cup"):
        pass
    assert not files(tmp_path)


def test_a_dead_owner_holds_nothing(place, tmp_path):
    code = """
import sys
with hold(sys.argv[1], "A cup"):
    print("held", flush=True)
    input()
"""
    with start(code, place) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on"):
            with ownership.hold(place, "A cup"):
                pass
        process.kill()
    assert len(files(tmp_path)) == 1
    with ownership.hold(place, "A cup"):
        (lock,) = files(tmp_path)
        assert f"process {os.getpid()} on" in lock.read_text()
    assert not files(tmp_path)


def test_lock_files_come_and_go_without_a_race(tmp_path):
    """Many processes hold a folder in turn, and never two at once."""
    code = """
import sys, pathlib
folder = pathlib.Path(sys.argv[1])
done = 0
while done < 300:
    try:
        with hold(folder, "A cup"):
            inside = folder / "inside"
            inside.touch(exist_ok=False)
            inside.unlink()
            done += 1
    except BlockingIOError:
        pass
"""
    processes = [start(code, tmp_path) for _ in range(4)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * 4
    assert not files(tmp_path)


def test_an_owner_does_not_remove_the_lock_of_the_next(tmp_path):
    """If its folder was moved away and another took its place."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with ownership.hold(folder, "A cup"):
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        other = ownership.hold(folder, "A cup")
        other.__enter__()
    with pytest.raises(BlockingIOError), ownership.hold(folder, "A cup"):
        pass
    other.__exit__(None, None, None)


def test_a_missing_folder_cannot_be_held(tmp_path):
    with pytest.raises(FileNotFoundError), ownership.hold(tmp_path / "a/b", ""):
        pass


@pytest.mark.parametrize("reason", ["disk", "system", "inodes"])
def test_missing_locks_cause_a_warning(reason, tmp_path, monkeypatch):
    if reason == "disk":

        def flock(file, operation):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("fcntl.flock", flock)
    elif reason == "system":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(ownership, "_is_at", lambda file, path: False)
    with pytest.warns(UserWarning, match="A cup cannot be kept to one process"):
        with ownership.hold(tmp_path, "A cup") as alone:
            assert not alone
    if reason != "inodes":
        assert not files(tmp_path)


def test_scratch_folders_of_dead_processes_are_removed(tmp_path):
    """Those of running processes stay."""
    code = """
import sys, pathlib, runpy
scratch = runpy.run_path(OWNERSHIP)["scratch"]
with scratch(pathlib.Path(sys.argv[1])) as folder:
    (folder / "half of it").touch()
    print(folder, flush=True)
    input()
""".replace("OWNERSHIP", repr(ownership.__file__))
    with ownership.scratch(tmp_path) as first, start(code, tmp_path) as process:
        second = Path(process.stdout.readline().strip())
        with ownership.scratch(tmp_path) as third:
            folders = {first, second, third}
            assert {*tmp_path.iterdir()} == folders
            assert (second / "half of it").exists()
        process.kill()
        process.wait()
        assert {*tmp_path.iterdir()} == {first, second}
        with ownership.scratch(tmp_path) as fourth:
            assert {*tmp_path.iterdir()} == {first, fourth}
    assert not list(tmp_path.iterdir())


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    new = kept / "a" / "b"
    with pytest.raises(ZeroDivisionError), ownership.made(new):
        assert new.is_dir()
        raise ZeroDivisionError
    assert not list(kept.iterdir())
    with ownership.made(kept):
        pass
    with ownership.made(new):
        (kept / "a" / "file").touch()
    assert [path.name for path in (kept / "a").iterdir()] == ["file"]
    with pytest.raises(FileExistsError), ownership.made(kept, exist_ok=False):
        pass
    for place in ("file", "file/b"):
        with pytest.raises(NotADirectoryError, match="a/file is a file. Choo"):
            with ownership.made(kept / "a" / place):
                pass


def test_a_file_of_others_is_left_alone(tmp_path):
    for place, lock in (
        (tmp_path, tmp_path / ".lock"),
        (tmp_path / "a.npz", tmp_path / ".a.npz.lock"),
    ):
        lock.write_text("a package manager's")
        with pytest.raises(FileExistsError, match="holds something else"):
            with ownership.hold(place, "It"):
                pass
        assert lock.read_text() == "a package manager's"
        lock.unlink()
    (tmp_path / "target").write_text("what a link leads to")
    (tmp_path / ".lock").symlink_to("target")
    with pytest.raises(OSError), ownership.hold(tmp_path, "It"):
        pass
    assert (tmp_path / "target").read_text() == "what a link leads to"
