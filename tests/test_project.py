import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = [
    path.relative_to(ROOT / "moco_keras")
    for path in sorted((ROOT / "moco_keras").rglob("*.py"))
]


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


# Words that only one room may say.
DOORS = {
    "tf.distribute": "distribution",
    "keras_cv": "augmentations",
    "tf.config.list_": "distribution",
    "tf.config.get_visible_devices": "distribution",
    "get_device_details": "distribution",
    # TensorFlow's random numbers change with XLA.
    "random.experimental": None,
    "keras.random.shuffle": None,
    "keras.random.uniform": None,
}
# Which rooms a room may import, and so whatever these may. A room is a folder
# of the package, or a module directly in it.
ARROWS = {
    "version": [],
    "arguments": [],
    "step_errors": [],
    "keras_private": [],
    "random": [],
    "system": [],
    "losses": [],
    "optimizers": ["arguments", "keras_private"],
    "schedules": ["arguments"],
    "distribution": ["system", "arguments", "keras_private"],
    "augmentations": ["distribution", "random"],
    "data": ["augmentations"],
    "shuffle_bn": ["distribution", "random", "step_errors"],
    "models": ["shuffle_bn"],
    "momentum": ["models"],
    "key_queue": ["losses", "arguments", "step_errors"],
    "training": ["data", "models", "momentum"],
    "moco": ["training", "key_queue", "momentum", "shuffle_bn", "losses"],
    "evaluation": ["data", "models"],
    "callbacks": ["evaluation", "training", "momentum"],
    "export": ["data", "models", "version"],
    "plotting": ["data", "evaluation"],
}


@pytest.mark.parametrize("module", PACKAGE, ids=str)
def test_doors_are_kept(module):
    source = (ROOT / "moco_keras" / module).read_text()
    said = {word: room for word, room in DOORS.items() if word in source}
    assert said == {word: module.parts[0] for word in said}


def imported(module):
    """Rooms of the package that a module imports, wherever it does so."""
    rooms = set()
    for node in ast.walk(ast.parse((ROOT / "moco_keras" / module).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = f"{name}.".partition(".")
            if package == "moco_keras":
                # The package itself imports all but the programs.
                rooms.add(rest.split(".")[0] or "the whole package")
    return rooms


def test_imports_point_downwards():
    """And never in a circle; programs import everything, and nothing them."""
    allowed = {}
    for (
        room,
        below,
    ) in ARROWS.items():  # a room stands below those it may import
        allowed[room] = set(below).union(*(allowed[other] for other in below))
    for module in PACKAGE:
        room = module.with_suffix("").parts[0]
        if room in ("__init__", "recipes"):
            continue
        upwards = imported(module) - allowed[room] - {room}
        assert not upwards, (module, upwards)


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
