"""Long scans are kept, and files that changed are looked at again."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_keras.files import progress, scan_cache, scanning


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twelve images and a text, long unchanged; every scan of it is long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(progress, "_PATIENCE", -1)
    folder = tmp_path / "images"
    for i in range(12):
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB" if i % 3 else "L", (8 + i, 9))
        image.save(folder / str(i % 2) / f"{i}.{'png' if i % 4 else 'jpg'}")
    (folder / "notes.txt").write_text("no image")
    for path in folder.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    return folder


@pytest.fixture
def looked_at(monkeypatch):
    """The names of the files that scans look at."""
    names = []
    examine = scanning._examine

    def noting(path, describe):
        names.append(Path(path).name)
        return examine(path, describe)

    monkeypatch.setattr(scanning, "_examine", noting)
    return names


def test_a_second_scan_looks_at_no_file(folder, looked_at, monkeypatch):
    first = scanning.scan(folder)
    assert len(looked_at) == 13 and len(first.files) == 12
    looked_at.clear()
    assert scanning.scan(folder) == first
    assert looked_at == []
    # By another name of the folder, too.
    link = folder.with_name("link")
    link.symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    for other in (link, "images"):
        again = scanning.scan(other)
        assert again.digests == first.digests
        assert again.headers == first.headers
    assert looked_at == []


def test_a_scan_that_did_not_end_goes_on(folder, looked_at):
    with pytest.raises(ValueError, match="notes.txt") as error:
        scanning.scan(folder, on_bad_image="error")
    assert len(looked_at) == 13
    looked_at.clear()
    assert len(scanning.scan(folder).files) == 12
    assert looked_at == []
    del error  # whose frames hold what was not closed


def test_what_changed_is_looked_at_again(folder, looked_at):
    scanning.scan(folder)
    looked_at.clear()
    (folder / "0" / "2.png").write_bytes(b"now something else")
    (folder / "0" / "4.jpg").unlink()
    (folder / "1" / "1.png").rename(folder / "1" / "new.png")
    Image.new("RGB", (3, 5)).save(folder / "1" / "more.png")
    os.utime(folder / "1" / "3.png", (2e9, 2e9))  # in the future
    found = scanning.scan(folder)
    changed = ["2.png", "3.png", "more.png", "new.png"]
    assert sorted(looked_at) == changed
    assert len(found.files) == 11
    assert {path.name for path, _ in found.skipped} == {"2.png", "notes.txt"}
    # What changed just now may change again within the same tick of the clock.
    looked_at.clear()
    assert scanning.scan(folder) == found
    assert sorted(looked_at) == ["2.png", "3.png", "more.png"]


def test_another_version_or_reader_looks_again(folder, looked_at, monkeypatch):
    scanning.scan(folder)
    looked_at.clear()
    monkeypatch.setattr(scan_cache, "__version__", "another")
    scanning.scan(folder)
    assert len(looked_at) == 13
    looked_at.clear()
    monkeypatch.setattr(scan_cache, "_OPTIONAL", ("not_installed",))
    scanning.scan(folder)
    assert len(looked_at) == 13


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "pickle"])
def test_a_damaged_file_of_a_scan_is_not_used(folder, looked_at, damage):
    first = scanning.scan(folder)
    (kept,) = (folder.parent / "cache/moco_keras/scans").iterdir()
    contents = kept.read_bytes()
    if damage == "pickle":
        np.savez(kept, keys=np.array([{}], "object"))
    else:
        kept.write_bytes(
            {"cut": contents[:-90], "empty": b"", "other": b"x"}[damage]
        )
    looked_at.clear()
    assert scanning.scan(folder) == first
    assert len(looked_at) == 13


def test_short_scans_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 60)
    scanning.scan(folder)
    assert not (folder.parent / "cache").exists()


def test_a_scan_that_cannot_be_kept_is_still_one(folder, capsys, monkeypatch):
    (folder.parent / "cache").write_text("a file")
    assert len(scanning.scan(folder).files) == 12
    assert "The result of the scan could not be kept" in capsys.readouterr().out


def test_a_file_that_changed_just_now_is_not_kept(folder, looked_at):
    now = time.time()
    os.utime(folder / "0" / "2.png", (now, now))
    scanning.scan(folder)
    looked_at.clear()
    scanning.scan(folder)
    assert looked_at == ["2.png"]


def test_a_change_that_keeps_the_time_is_seen(folder, looked_at):
    """Such as that of programs which turn JPEGs in place."""
    scanning.scan(folder)
    looked_at.clear()
    path = folder / "0" / "0.jpg"
    contents = bytearray(path.read_bytes())
    contents[-20] ^= 1
    path.write_bytes(contents)
    os.utime(path, (1e9, 1e9))
    scanning.scan(folder)
    assert looked_at == ["0.jpg"]


def test_a_file_that_could_not_be_read_is_tried_again(folder, monkeypatch):
    look = scanning._look

    def failing(file, decode=False):
        if file.name.endswith("3.png"):
            raise OSError(5, "Input/output error")
        if file.name.endswith("5.png"):
            raise MemoryError
        return look(file, decode)

    with monkeypatch.context() as context:
        context.setattr(scanning, "_look", failing)
        found = scanning.scan(folder)
    assert {p.name: reason for p, reason in found.skipped} == {
        "3.png": "Input/output error",
        "5.png": "MemoryError",
        "notes.txt": "Neither JPEG, PNG, GIF, BMP, WebP, TIFF nor .npy",
    }
    assert len(scanning.scan(folder).files) == 12


def test_decoding_all_finds_all_damage(folder):
    path = folder / "1" / "7.png"
    contents = bytearray(path.read_bytes())
    place = contents.index(b"IDAT") + 6
    contents[place : place + 4] = bytes(4)
    path.write_bytes(contents)
    assert len(scanning.scan(folder).files) == 12
    found = scanning.scan(folder, decode=True)
    assert [p.name for p, _ in found.skipped] == ["7.png", "notes.txt"]


def test_a_computer_without_a_home_keeps_no_scan_there(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nowhere(path):
        raise RuntimeError

    monkeypatch.setattr(scan_cache.Path, "expanduser", nowhere)
    assert scan_cache._place().parts[-2:] == ("moco_keras", "scans")
