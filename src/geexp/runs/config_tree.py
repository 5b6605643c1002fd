"""A configuration as a tree, for eyes."""

import io
from typing import Any

from rich.console import Console
from rich.tree import Tree


def config_tree(config: dict[str, Any], *, title: str) -> Tree:
    """One branch per group, one leaf per key."""
    tree = Tree(f"[bold]{title}[/]", guide_style="dim")
    for key, value in config.items():
        if isinstance(value, dict):
            branch = tree.add(f"[bold]{key}[/]")
            for name, item in value.items():
                branch.add(f"{name}: {item}")
        else:
            tree.add(f"{key}: {value}")
    return tree


def as_text(tree: Tree) -> str:
    """The tree without colours, for a file."""
    text = io.StringIO()
    Console(file=text, width=120).print(tree)
    return text.getvalue()
