"""What the rooms of the package import, and a picture of it.

    python tests/helpers/architecture.py

redraws the picture in docs/architecture.md.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moco_keras"
MODULES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
PAGE = ROOT / "docs/architecture.md"
# Nearly all others import these, which would hide the rest.
_LEAVES = (
    "arguments",
    "keras_private",
    "pixel_format",
    "random",
    "step_errors",
    "system",
    "version",
)


def room_of(module):
    """The folder of a module, or its name if it is directly in the package."""
    return module.with_suffix("").parts[0]


def imports(module):
    """The rooms that a module imports anywhere, its own included."""
    rooms = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "moco_keras":
                # The package itself imports all but the programs.
                rooms.add(rest.split(".")[0] or "the whole package")
    return rooms


def arrows():
    """The rooms that each room imports, by room; without the programs."""
    found = {}
    for module in MODULES:
        room = room_of(module)
        if room not in ("__init__", "recipes"):
            found.setdefault(room, set()).update(imports(module) - {room})
    return found


def drawn():
    """The arrows as a Mermaid graph, without those that others imply."""
    shown = {
        room: others - {*_LEAVES}
        for room, others in arrows().items()
        if room not in _LEAVES
    }

    def reached(room):
        return set().union(*({other} | reached(other) for other in shown[room]))

    lines = ["```mermaid", "graph TD", "  recipes"]
    for room in sorted(shown):
        implied = set().union(*(reached(other) for other in shown[room]))
        for other in sorted(shown[room] - implied):
            lines.append(f"  {room} --> {other}")
    below = set().union(*shown.values())
    lines += [f"  recipes --> {room}" for room in sorted(set(shown) - below)]
    return "\n".join([*lines, "```"])


def with_picture(text):
    """The page with the graph as it is now."""
    return re.sub(r"```mermaid\n.*?```", drawn(), text, count=1, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(with_picture(PAGE.read_text()))
