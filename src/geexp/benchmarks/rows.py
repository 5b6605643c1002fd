"""What is compared, what is demanded of it, and what came out: the same for every benchmark."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Spread(NamedTuple):
    """Of a figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    ``times``: seconds of every round, by what was timed; round i of all contenders of a case ran one after the other.
    ``amounts``: what does not vary from round to round, such as bytes; None where it could not be had.
    """

    case: str
    contender: str
    times: dict[str, list[float]]
    amounts: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A demand on ``figure`` of a contender, as a ratio to ``against``'s in the same case; without one, as it is.

    ``at_least``: so many times less of it than ``against``. ``at_most``: no more than so many times what ``against``
    has. One of the two is given.
    """

    name: str
    case: str
    contender: str
    figure: str
    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What became of a demand."""

    name: str
    case: str
    contender: str
    sign: str
    bound: float
    value: float
    low: float
    high: float
    met: bool


def figure(row: Row, name: str) -> Spread | None:
    """A time or an amount by name; None where the row has none."""
    if name in row.times:
        return Spread.of(row.times[name])
    amount = row.amounts.get(name)
    return None if amount is None else Spread.of([amount])


def ratio(row: Row, other: Row, name: str) -> Spread | None:
    """A figure of ``row`` over that of ``other``, round by round; None where one of the two has none."""
    if name in row.times and name in other.times:
        return Spread.of([a / b for a, b in zip(row.times[name], other.times[name], strict=True)])
    amount, unit = row.amounts.get(name), other.amounts.get(name)
    return None if amount is None or not unit else Spread.of([amount / unit])


def verdicts(targets: Iterable[Target], rows: Iterable[Row]) -> list[Verdict]:
    """Of those demands whose two contenders were measured."""
    found = {(row.case, row.contender): row for row in rows}
    out = []
    for target in targets:
        ours = found.get((target.case, target.contender))
        theirs = found.get((target.case, target.against or target.contender))
        if ours is None or theirs is None:
            continue
        if target.at_least is not None:
            sign, bound, spread = "≥", target.at_least, ratio(theirs, ours, target.figure)
        else:
            sign, bound = "≤", target.at_most or 0.0
            spread = ratio(ours, theirs, target.figure) if target.against else figure(ours, target.figure)
        if spread is not None:
            met = spread.median >= bound if sign == "≥" else spread.median <= bound
            out.append(Verdict(target.name, target.case, target.contender, sign, bound, *spread, met=met))
    return out


@dataclass(frozen=True)
class Column:
    """Of a table: a figure as it is, times ``scale``, or its ratio to that of the first of ``against`` in the case."""

    heading: str
    figure: str
    against: tuple[str, ...] = ()
    scale: float = 1.0
    digits: int = 2


@dataclass(frozen=True)
class Comparison:
    """All that a benchmark has found. ``remarks`` say what a reader of the numbers must know."""

    title: str
    columns: list[Column]
    rows: list[Row]
    targets: list[Target]
    remarks: list[str]

    @property
    def verdicts(self) -> list[Verdict]:
        return verdicts(self.targets, self.rows)
