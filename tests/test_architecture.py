"""Imports go down the floors only, and the operators need nothing but torch."""

import ast
import sys
from pathlib import Path

import geexp

PACKAGE = Path(geexp.__file__).parent
# Ground floor first; entry points and the package itself stand above all.
FLOORS = [
    "operators",
    "registry",
    "backbones",
    "config",
    "runs",
    "data",
    "training",
    "detection",
    "analysis",
    "report",
    "launching",
]
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports would pass unseen"
            names += [f"geexp.{alias.name}" for alias in node.names] if node.module == "geexp" else [node.module or ""]
    return names


def floor(name: str) -> int:
    """The floor of ``geexp.<name>…``."""
    return FLOORS.index(name) if name in FLOORS else len(FLOORS)


def test_imports_go_down():
    upward = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in SOURCES
        for name in imports(path)
        if path.name != "__main__.py"
        if name.startswith("geexp.") and floor(name.split(".")[1]) > floor(path.relative_to(PACKAGE).parts[0])
    ]
    assert not upward, "\n".join(upward)


def test_operators_need_only_torch():
    sources = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] == "operators"]
    assert sources
    foreign = {name.split(".")[0] for path in sources for name in imports(path)} - {"torch", "geexp"}
    assert foreign - sys.stdlib_module_names <= {"triton"}  # which comes with torch where there can be a GPU
