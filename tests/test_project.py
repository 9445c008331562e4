import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "moco_keras").rglob("*.py"))


def version(text):
    return tuple(int(part) for part in text.split("."))


def test_requirements_are_allowed_by_pyproject():
    pyproject = (ROOT / "pyproject.toml").read_text()
    floors = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', pyproject))
    del floors["setuptools"]
    pinned = re.findall(
        r"^([\w-]+)==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M
    )
    assert {name for name, _ in pinned} == set(floors)
    for name, exact in pinned:
        assert version(exact) >= version(floors[name]), name


@pytest.mark.parametrize("module", PACKAGE, ids=lambda path: path.stem)
def test_doors_are_kept(module):
    """One module each says what others ask it for; none says recipes."""
    source = module.read_text()
    doors = {
        "tf.distribute": "distribution.py",
        "keras_cv": "augmentations.py",
        "tf.config.list_": "accelerators.py",
        "tf.config.get_visible_devices": "accelerators.py",
        "get_device_details": "accelerators.py",
        # TensorFlow's random numbers change with XLA.
        "random.experimental": "nowhere",
        "keras.random.shuffle": "nowhere",
        "keras.random.uniform": "nowhere",
    }
    for word, door in doors.items():
        assert word not in source or module.name == door
    if module.parent.name != "recipes":
        assert "moco_keras.recipes" not in imported(source)


def imported(source):
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return names


@pytest.mark.slow
def test_readme_trains_and_exports(tmp_path):
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    code = code.replace("draw(2_000", "draw(256")
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert list(tmp_path.glob("saved_models/my_encoder/1/saved_model.pb"))
