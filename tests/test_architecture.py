"""Each floor imports only from the floors below it, and the operators from torch alone."""

import ast
from pathlib import Path

import pytest

import geexp

PACKAGE = Path(geexp.__file__).parent
FLOORS = [
    "operators",
    "config",
    "paper",
    "records",
    "backbones",
    "complexity_count",
    "data",
    "training",
    "detection",
    "analysis",
    "results",
    "benchmarks",
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
    """The place of ``geexp.<name>…``; entry points and the package itself stand above all."""
    return FLOORS.index(name) if name in FLOORS else len(FLOORS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imports(path):
        if name.startswith("geexp."):
            assert floor(name.split(".")[1]) <= floor(here), f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in SOURCES if "operators" in p.parts], ids=lambda p: p.name)
def test_operators_need_only_torch(path):
    foreign = {name.split(".")[0] for name in imports(path)} - {"torch", "typing", "geexp"}
    assert not foreign
