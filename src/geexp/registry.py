"""The options of a config group as data: each YAML file of ``conf/<group>/`` describes what it names.

Such a file has the import path of what it stands for (``_target_``), the facts that are needed before torch is
imported, and the defaults of its settings.
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
    """What each file of a group says, by the option's name: first by its ``order``, then by name. Read-only.

    Interpolations are left as they are, and defaults lists are not followed.
    """
    files = sorted((config_directory() / group).glob("*.yaml"))
    found = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in files}
    return dict(sorted(found.items(), key=lambda item: item[1].get("order", 0)))


def locate(target: str) -> Any:
    """What a ``_target_`` such as ``package.module.name`` stands for.

    Raises:
        ValueError: if there is no such thing, saying which part of the path is missing. An exception that the module
            itself raises when it is imported passes through.
    """
    module, _, name = target.rpartition(".")
    if not module:
        raise ValueError(f"{target!r} is no import path: it must be as in package.module.name")
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
    """What a ``_target_`` stands for, with these arguments of its YAML file, to be called with the rest.

    Args:
        called_with: the names of the keywords that the caller adds.
        after: the number of positional arguments that the caller puts in front.

    Raises:
        ValueError: if there is no such thing, or it does not take these arguments, naming the one that is wrong.
    """
    found = locate(target)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of something built in, whose first call shows it
        return partial(found, **arguments)
    try:
        signature.bind(*[None] * after, **dict.fromkeys(called_with), **arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "none"
        raise ValueError(f"{target}: {error}; its arguments are {signature}, given are {given}") from error
    return partial(found, **arguments)
