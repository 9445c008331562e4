import re
import subprocess
import sys
from pathlib import Path

import architecture
import pytest

ROOT = Path(__file__).parent.parent


def version(text):
    return tuple(int(part) for part in text.split("."))


def test_requirements_are_allowed_by_pyproject():
    pyproject = (ROOT / "pyproject.toml").read_text()
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)(?:,<([\d.]+))?"', pyproject)
    allowed = {name: (least, above) for name, least, above in bounds}
    del allowed["setuptools"]
    pinned = re.findall(
        r"^([\w-]+)==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M
    )
    assert {name for name, _ in pinned} == set(allowed)
    for name, exact in pinned:
        least, above = allowed[name]
        assert version(exact) >= version(least), name
        assert not above or version(exact) < version(above), name


# Words that only one room may contain.
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
# The rooms that each room may import, and with them whatever they may import.
# A room is a folder of the package, or a module directly in it.
ARROWS = {
    "version": [],
    "arguments": [],
    "pixel_format": [],
    "step_errors": [],
    "keras_private": [],
    "random": [],
    "system": [],
    "losses": [],
    "optimizers": ["arguments", "keras_private"],
    "schedules": ["arguments"],
    "distribution": ["system", "arguments", "keras_private"],
    "augmentations": ["distribution", "random"],
    "files": ["arguments", "pixel_format", "system", "version"],
    "data": ["augmentations", "files"],
    "shuffle_bn": ["distribution", "random", "step_errors"],
    "models": ["shuffle_bn", "pixel_format"],
    "group_encoding": ["shuffle_bn", "models"],
    "momentum": ["models"],
    "key_queue": ["arguments", "step_errors"],
    "training": ["data", "models", "momentum"],
    "moco": ["training", "key_queue", "losses", "shuffle_bn", "group_encoding"],
    "evaluation": ["data", "models", "optimizers", "schedules"],
    "callbacks": ["evaluation", "training", "momentum"],
    "export": ["data", "models", "version"],
    "plotting": ["data", "evaluation"],
}


@pytest.mark.parametrize("module", architecture.MODULES, ids=str)
def test_words_stay_in_their_rooms(module):
    source = (ROOT / "moco_keras" / module).read_text()
    found = {word: room for word, room in DOORS.items() if word in source}
    assert found == {word: module.parts[0] for word in found}


def test_imports_point_downward():
    """Without cycles. Programs may import everything."""
    allowed = {}
    # A room stands in the table below those that it may import.
    for room, below in ARROWS.items():
        allowed[room] = set(below).union(*(allowed[other] for other in below))
    found = architecture.arrows()
    assert set(found) == set(allowed)
    upward = {room: others - allowed[room] for room, others in found.items()}
    assert not any(upward.values()), upward


def test_nothing_imports_the_programs():
    for module in architecture.MODULES:
        if architecture.room_of(module) != "recipes":
            assert "recipes" not in architecture.imports(module), module


def test_the_picture_is_current():
    """If this fails, run `python tests/helpers/architecture.py`."""
    page = architecture.PAGE.read_text()
    assert architecture.with_picture(page) == page


def test_a_module_has_at_most_300_lines():
    lengths = {
        str(module): len(
            (architecture.PACKAGE / module).read_text().splitlines()
        )
        for module in architecture.MODULES
    }
    assert {name: n for name, n in lengths.items() if n > 300} == {}


def test_pages_name_tests_that_exist():
    pages = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    named = re.findall(r"test_\w+\.py", "".join(p.read_text() for p in pages))
    existing = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(named) <= existing and named


@pytest.mark.slow
def test_readme_trains_and_exports(tmp_path):
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    code = code.replace("draw(2_000", "draw(256")
    code = f"import shallow; shallow.networks().start()\n{code}"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env={
            "PYTHONPATH": f"{ROOT}:{ROOT}/tests/helpers",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
    )
    assert list(tmp_path.glob("saved_models/my_encoder/1/saved_model.pb"))
