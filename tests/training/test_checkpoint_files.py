import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from moco_keras.training.checkpoint_files import CheckpointFiles


def tensors(value, size=1000):
    """Of several shapes and types."""
    return {
        "a b/0001": tf.fill((size, 3), float(value)),
        "random state": tf.constant([value, 7], "uint32"),
        "steps": tf.constant(value, "int64"),
        "half": tf.fill((5,), tf.cast(value, "bfloat16")),
    }


def assert_newest(snapshots, value):
    saved = snapshots.newest()
    assert sorted(saved) == sorted(tensors(value))
    for name, expected in tensors(value).items():
        assert saved[name].dtype == expected.dtype.as_numpy_dtype
        np.testing.assert_array_equal(saved[name], expected)


@pytest.fixture
def snapshots(tmp_path):
    """A folder with three snapshots."""
    snapshots = CheckpointFiles(tmp_path / "folder")
    assert snapshots.newest() is None
    for number in (1, 9, 10, 200):
        snapshots.write(number, tensors(number))
    return snapshots


@pytest.mark.parametrize("name", [b"a[b]", b"a\\b", b"*?", b"\xff\n"])
def test_folders_of_any_name(name, tmp_path):
    folder = tmp_path / os.fsdecode(name)
    CheckpointFiles(folder).write(3, tensors(3))
    assert_newest(CheckpointFiles(folder), 3)


def test_the_newest_three_are_kept(snapshots):
    names = {path.name for path in snapshots.folder.iterdir()}
    assert names == {
        f"{number:09d}{suffix}"
        for number in (9, 10, 200)
        for suffix in (".index", ".data-00000-of-00001")
    }
    assert_newest(snapshots, 200)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


DAMAGES = (zero, flip, truncate, empty)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_one_that_is_damaged_is_named_and_passed_over(
    snapshots, damage, suffix
):
    damage(snapshots.folder / f"000000200{suffix}")
    with pytest.warns(UserWarning, match="folder/000000200 is damaged"):
        assert_newest(snapshots, 10)
    # What takes its place is read again.
    snapshots.write(200, tensors(200))
    assert_newest(snapshots, 200)


def test_a_part_that_is_missing_is_damage(snapshots):
    (snapshots.folder / "000000200.data-00000-of-00001").unlink()
    with pytest.warns(UserWarning, match="200 is damaged"):
        assert_newest(snapshots, 10)


def test_where_all_are_damaged_nothing_is_changed(snapshots):
    for path, damage in zip(
        sorted(snapshots.folder.glob("*.index")), DAMAGES, strict=False
    ):
        damage(path)
    before = {p: p.read_bytes() for p in snapshots.folder.iterdir()}
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match="000000200, .*010, .*009.*Bring one"),
    ):
        snapshots.newest()
    assert before == {p: p.read_bytes() for p in snapshots.folder.iterdir()}


def test_what_a_killed_process_left_is_removed(snapshots):
    """It writes to files of other names, and then renames them."""
    name = "000000300.data-00000-of-00001.tempstate123"
    (snapshots.folder / name).write_bytes(b"half of it")
    assert_newest(snapshots, 200)
    assert not list(snapshots.folder.glob("*300*"))


def test_a_full_disk(small_disk):
    snapshots = CheckpointFiles(small_disk[0] / "folder")
    snapshots.write(1, tensors(1))
    with pytest.raises(OSError, match="No space left.*000000001 is still"):
        snapshots.write(2, tensors(2, size=100_000))
    assert_newest(snapshots, 1)
    assert len(list(snapshots.folder.iterdir())) == 2  # nothing takes room


def test_a_folder_that_became_read_only(small_disk):
    folder, make_read_only = small_disk
    snapshots = CheckpointFiles(folder / "folder")
    snapshots.write(1, tensors(1))
    make_read_only()
    with pytest.raises(
        OSError,
        match=r"folder: [^{]*Read-only file system\. .*is still there",
    ):
        snapshots.write(2, tensors(2))
    assert_newest(snapshots, 1)
    with pytest.raises(OSError, match="Read-only file system"):
        CheckpointFiles(folder / "folder")


def test_a_folder_that_vanished(snapshots):
    shutil.rmtree(snapshots.folder)
    with pytest.raises(OSError, match="No such file or directory"):
        snapshots.write(201, tensors(201))
    assert not snapshots.folder.exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file/folder"):
        CheckpointFiles(tmp_path / "file" / "folder")
