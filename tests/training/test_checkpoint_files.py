import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from moco_keras.training.checkpoint_files import CheckpointFiles


def tensors(value, size=1000):
    """Tensors of several shapes and types."""
    return {
        "a b/0001": tf.fill((size, 3), float(value)),
        "random state": tf.constant([value, 7], "uint32"),
        "steps": tf.constant(value, "int64"),
        "half": tf.fill((5,), tf.cast(value, "bfloat16")),
    }


def assert_newest(checkpoints, value):
    saved = checkpoints.newest()
    assert sorted(saved) == sorted(tensors(value))
    for name, expected in tensors(value).items():
        assert saved[name].dtype == expected.dtype.as_numpy_dtype
        np.testing.assert_array_equal(saved[name], expected)


@pytest.fixture
def checkpoints(tmp_path):
    """A folder with three checkpoints, after a fourth was dropped."""
    checkpoints = CheckpointFiles(tmp_path / "folder")
    assert checkpoints.newest() is None
    for number in (1, 9, 10, 200):
        checkpoints.write(number, tensors(number))
    return checkpoints


@pytest.mark.parametrize("name", [b"a[b]", b"a\\b", b"*?", b"\xff\n"])
def test_folders_of_any_name(name, tmp_path):
    folder = tmp_path / os.fsdecode(name)
    CheckpointFiles(folder).write(3, tensors(3))
    assert_newest(CheckpointFiles(folder), 3)


def test_the_newest_three_are_kept(checkpoints):
    names = {path.name for path in checkpoints.folder.iterdir()}
    assert names == {
        f"{number:09d}{suffix}"
        for number in (9, 10, 200)
        for suffix in (".index", ".data-00000-of-00001")
    }
    assert_newest(checkpoints, 200)


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
def test_a_damaged_checkpoint_is_named_and_skipped(checkpoints, damage, suffix):
    damage(checkpoints.folder / f"000000200{suffix}")
    with pytest.warns(UserWarning, match="folder/000000200 is damaged"):
        assert_newest(checkpoints, 10)
    # Its replacement is read.
    checkpoints.write(200, tensors(200))
    assert_newest(checkpoints, 200)


def test_a_missing_file_counts_as_damage(checkpoints):
    (checkpoints.folder / "000000200.data-00000-of-00001").unlink()
    with pytest.warns(UserWarning, match="200 is damaged"):
        assert_newest(checkpoints, 10)


def test_nothing_changes_if_all_are_damaged(checkpoints):
    for path, damage in zip(
        sorted(checkpoints.folder.glob("*.index")), DAMAGES, strict=False
    ):
        damage(path)
    before = {p: p.read_bytes() for p in checkpoints.folder.iterdir()}
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match="000000200, .*010, .*009.*Bring one"),
    ):
        checkpoints.newest()
    assert before == {p: p.read_bytes() for p in checkpoints.folder.iterdir()}


def test_leftovers_of_a_killed_process_are_removed(checkpoints):
    """TensorFlow writes to temporary names, and then renames the files."""
    name = "000000300.data-00000-of-00001.tempstate123"
    (checkpoints.folder / name).write_bytes(b"half of it")
    assert_newest(checkpoints, 200)
    assert not list(checkpoints.folder.glob("*300*"))


def test_a_full_disk(small_disk):
    checkpoints = CheckpointFiles(small_disk[0] / "folder")
    checkpoints.write(1, tensors(1))
    with pytest.raises(OSError, match="No space left.*000000001 is still"):
        checkpoints.write(2, tensors(2, size=100_000))
    assert_newest(checkpoints, 1)
    assert len(list(checkpoints.folder.iterdir())) == 2  # no leftovers


def test_a_folder_that_became_read_only(small_disk):
    folder, make_read_only = small_disk
    checkpoints = CheckpointFiles(folder / "folder")
    checkpoints.write(1, tensors(1))
    make_read_only()
    with pytest.raises(
        OSError,
        match=r"folder: [^{]*Read-only file system\. .*is still there",
    ):
        checkpoints.write(2, tensors(2))
    assert_newest(checkpoints, 1)
    with pytest.raises(OSError, match="Read-only file system"):
        CheckpointFiles(folder / "folder")


def test_a_folder_that_vanished(checkpoints):
    shutil.rmtree(checkpoints.folder)
    with pytest.raises(OSError, match="No such file or directory"):
        checkpoints.write(201, tensors(201))
    assert not checkpoints.folder.exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file/folder"):
        CheckpointFiles(tmp_path / "file" / "folder")
