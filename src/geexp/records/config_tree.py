"""A configuration as a tree, for eyes."""

import io
import sys
from typing import Any

from rich.console import Console
from rich.tree import Tree


def print_config(config: dict[str, Any], *, title: str) -> str:
    """Print the tree to standard error and return it as text."""
    tree = Tree(f"[bold]{title}[/]", guide_style="dim")
    for key, value in config.items():
        if isinstance(value, dict):
            branch = tree.add(f"[bold]{key}[/]")
            for name, item in value.items():
                branch.add(f"{name}: {item}")
        else:
            tree.add(f"{key}: {value}")
    Console(file=sys.stderr).print(tree)
    text = io.StringIO()
    Console(file=text, width=120).print(tree)
    return text.getvalue()
