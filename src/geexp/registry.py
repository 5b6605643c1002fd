"""The options of a config group, one per YAML file in ``conf/<group>/``.

A file holds an import path (``_target_``), the facts that are needed before torch is imported, and default settings.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

_PACKAGE = Path(__file__).parent


def config_directory() -> Path:
    """``conf/``: inside the installed package, or beside ``src/`` in a checkout."""
    shipped = _PACKAGE / "conf"
    return shipped if shipped.is_dir() else _PACKAGE.parents[1] / "conf"


@cache
def options(group: str) -> dict[str, dict[str, Any]]:
    """The content of each file of a group by option name, sorted by ``order`` and then by name. Read-only.

    Interpolations are not resolved, and defaults lists are not followed.
    """
    files = sorted((config_directory() / group).glob("*.yaml"))
    found = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in files}
    return dict(sorted(found.items(), key=lambda item: item[1].get("order", 0)))


def locate(target: str) -> Any:
    """Import the object at a ``_target_`` such as ``package.module.name``.

    Raises:
        ValueError: if it does not exist, naming the missing part of the path. Exceptions raised by the module itself
            during the import pass through.
    """
    module, _, name = target.rpartition(".")
    if not module:
        raise ValueError(f"{target!r} is not an import path of the form package.module.name")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{target}: there is no module {error.name} on Python's path") from error
    if not hasattr(found, name):
        raise ValueError(f"{target}: module {module} has no {name!r}")
    return getattr(found, name)


def bound(
    target: str, arguments: dict[str, Any], *, called_with: tuple[str, ...] = (), after: int = 0
) -> Callable[..., Any]:
    """A ``functools.partial`` of the object at a ``_target_`` with the arguments from its YAML file.

    Args:
        called_with: the names of the keywords that the caller adds.
        after: the number of positional arguments that the caller adds.

    Raises:
        ValueError: if the object does not exist, or does not accept these arguments, naming the wrong one.
    """
    found = locate(target)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # a built-in without a signature: wrong arguments show at the first call
        return partial(found, **arguments)
    try:
        signature.bind(*[None] * after, **dict.fromkeys(called_with), **arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "none"
        raise ValueError(f"{target}: {error}; its arguments are {signature}, given are {given}") from error
    return partial(found, **arguments)
