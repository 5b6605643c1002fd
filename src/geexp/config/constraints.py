"""Constraints on the values of single keys, as annotations of the schema's fields."""

import math
import os
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from geexp.config.errors import ConfigError, bad_value


class OneOf:
    """One of the listed values."""

    def __init__(self, *allowed: object) -> None:
        self.allowed = allowed

    def check(self, key: str, value: Any) -> None:
        if value not in self.allowed:
            raise bad_value(key, value, self.allowed)


@dataclass(frozen=True)
class AtLeast:
    """A finite number, at least ``least``."""

    least: float

    def check(self, key: str, value: Any) -> None:
        if not self.least <= value < math.inf:  # NaN fails, too
            raise ConfigError(f"{key}={value}: must be at least {self.least} and finite.")


@dataclass(frozen=True)
class Above:
    """A finite number above ``least``."""

    least: float

    def check(self, key: str, value: Any) -> None:
        if not self.least < value < math.inf:
            raise ConfigError(f"{key}={value}: must be above {self.least} and finite.")


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``; ``above`` and ``below`` exclude the lower and the upper end."""

    low: float
    high: float
    above: bool = False
    below: bool = False
    unit: str = ""

    def check(self, key: str, value: Any) -> None:
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        if not (low and high):
            start = f"above {self.low}" if self.above else f"from {self.low}"
            end = f"below {self.high}" if self.below else f"{self.high}"
            raise ConfigError(f"{key}={value}: must be {start} to {end}{self.unit}.")


@dataclass(frozen=True)
class NotEmpty:
    """A non-empty word; ``meaning`` describes it, with an example."""

    meaning: str

    def check(self, key: str, value: Any) -> None:
        if not value:
            raise ConfigError(f"{key} is empty: it is {self.meaning}.")


class Location:
    """The path of a file or folder; ``check_values`` expands a leading ``~``."""


def expand_home(key: str, path: str) -> str:
    """The path with a leading ``~`` or ``~user`` replaced by that home folder.

    Raises:
        ConfigError: if there is none; the path would then name a folder called ``~``.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(f"{key}={path}: there is no such home folder. Write the whole path.")
    return expanded


@dataclass(frozen=True)
class WandbName:
    """A name that W&B accepts: 1 to 128 characters, without those in ``forbidden``."""

    forbidden: str = ""

    def check(self, key: str, value: Any) -> None:
        found = sorted(set(self.forbidden) & set(value))
        if found or not value.strip() or len(value) > 128:
            without = f", without {' '.join(self.forbidden)}" if self.forbidden else ""
            raise ConfigError(f"{key}={value}: W&B does not accept this name. It needs 1 to 128 characters{without}.")


class Extent:
    """An extent ratio: a power of two, at least 2, or ``global``."""

    def check(self, key: str, value: Any) -> None:
        if value != "global" and not (isinstance(value, int) and value >= 2 and value.bit_count() == 1):
            raise bad_value(key, value, (2, 4, 8, "global"), hint="Any power of two, at least 2, is allowed.")


def check_values(config: Any, prefix: str = "") -> None:
    """Check every value of a configuration (a nested dataclass) against the constraints of its field; expand paths.

    None is allowed if the field's type allows it.

    Raises:
        ConfigError: for the first value that is not allowed.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for item in fields(config):
        value, key = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            check_values(value, f"{key}.")
        elif value is not None and get_origin(hints[item.name]) is Annotated:
            for constraint in get_args(hints[item.name])[1:]:
                if isinstance(constraint, Location):
                    setattr(config, item.name, expand_home(key, value))
                else:
                    constraint.check(key, value)
