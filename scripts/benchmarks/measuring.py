"""Shared code of the benchmarks: interleaved rounds, clocks, memory, ratios against targets, tables and JSON.

Each round runs every contender once, in one process, and a ratio is the median of the rounds' ratios, so that other
load on the machine affects all contenders alike. ``torch.utils.benchmark.Timer`` finishes one contender before it
starts the next and measures wall-clock time, and its ``Compare`` has no ratios; therefore it is not used.
"""

import argparse
import ctypes
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from tabulate import tabulate
from torch import Tensor

from geexp.data.parallel import processors
from geexp.operators import IMPLEMENTATIONS, VARIANTS
from geexp.runs.atomic_write import atomic_write
from geexp.runs.environment import environment

T = TypeVar("T")
Clock = Callable[[Callable[[], object]], float]

ROOT = Path(__file__).parents[2]
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
EXTENTS: list[int | str] = [2, 4, 8, "global"]


# Command lines


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark; ``description`` is the script's docstring."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=positive, default=5, help="each runs every contender once (%(default)s)")
    out = Path("outputs/benchmarks", f"{Path(sys.argv[0]).stem}.json")
    made.add_argument("--out", type=Path, default=out, help="JSON file (%(default)s)")
    return made


def operator_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of the benchmarks that compare Gather-Excite operators."""
    made = parser(description)
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cpu is one thread")
    made.add_argument("--batch-size", type=positive)
    made.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all")
    made.add_argument("--extents", nargs="+", type=extent, choices=EXTENTS, help="each with every variant")
    made.add_argument("--layouts", nargs="+", choices=MEMORY_FORMATS)
    made.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS)
    made.add_argument("--only-ours", action="store_true", help="leave out timm's and BayesWatch's operators")
    return made


def parse(made: argparse.ArgumentParser, on_gpu: Mapping[str, Any]) -> argparse.Namespace:
    """The options of the command line, with other defaults on a GPU."""
    if made.parse_args().device == "cuda":
        made.set_defaults(**on_gpu)
        if not torch.cuda.is_available():
            made.error("--device cuda: torch finds no GPU on this machine; use --device cpu")
    options = made.parse_args()
    if options.batch_size == 1:
        made.error("--batch-size 1: batch normalisation of 1x1 maps needs 2 or more images")
    return options


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return int(text)


def extent(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def operator_name(variant: str, extent: int | str) -> str:
    return f"{variant} {extent if extent == 'global' else f'e={extent}'}"


# Time


def clock_for(device: str) -> Clock:
    """Prepare a device for measuring (one thread on a CPU), and return a function that times a piece of work."""
    if device == "cuda":
        return cuda_seconds
    torch.set_num_threads(1)
    _keep_freed_memory()
    return processor_seconds


def interleaved(
    works: Mapping[str, Callable[[], Any]], clock: Callable[[Callable[[], Any]], T], *, rounds: int, warm_up: int = 1
) -> dict[str, list[T]]:
    """The result of ``clock`` for each piece of work in each round, after ``warm_up`` rounds that do not count.

    The order is shuffled in each round, since a small contender leaves more of the data in the cache for the next one.
    """
    order, rng = [*works], random.Random(0)
    measured: dict[str, list[T]] = {name: [] for name in works}
    for round_ in range(-warm_up, rounds):
        rng.shuffle(order)
        for name in order:
            value = clock(works[name])
            if round_ >= 0:
                measured[name].append(value)
    return measured


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time, which is comparable even on a busy machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def cuda_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Time between two CUDA events; repeated, since a kernel can be shorter than recording the events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory, with up to 2 GiB touched in advance.

    By default glibc returns large blocks to the system. Getting them back costs a page fault per 4 KB, which takes
    several times as long as the arithmetic on it, and does not affect all contenders equally.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_max = -1, -4  # glibc's mallopt(3)
    with suppress(AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
        torch.empty(min(2**31, psutil.virtual_memory().available // 4), dtype=torch.uint8).fill_(0)


# Memory


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd saves for backward, counting every storage once, without parameters."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would form a reference cycle with its graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # kept until the end, so that no freed address is reused
    of_parameters = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    del result
    return sum(size for address, size in kept.items() if address not in of_parameters)


def peak_bytes(work: Callable[[], object], device: str) -> dict[str, float]:
    """``peak``: the increase of the GPU allocator's peak memory during the work; empty on a CPU."""
    if device != "cuda":
        return {}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return {"peak": torch.cuda.max_memory_allocated() - before}


# Results


class Spread(NamedTuple):
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    ``seconds`` holds every round's time by figure; round i of all contenders of a case ran together. ``amounts`` holds
    figures that do not vary between rounds, such as bytes.
    """

    case: str
    contender: str
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    amounts: Mapping[str, float] = field(default_factory=dict)

    def spread(self, figure: str, over: "Row | None" = None) -> Spread | None:
        """A figure, or its ratio to that of another contender, round by round; None if it was not measured."""
        values = self._values(figure)
        if over is not None:
            values = [a / b for a, b in zip(values, over._values(figure), strict=False)]
        return Spread(statistics.median(values), min(values), max(values)) if values else None

    def _values(self, figure: str) -> Sequence[float]:
        return self.seconds.get(figure) or ([self.amounts[figure]] if figure in self.amounts else [])


@dataclass(frozen=True)
class Target:
    """A bound on a figure of a contender in a case.

    With ``against`` it bounds a ratio: for ``≤`` the contender's figure over the other contender's; for ``≥`` the
    inverse, a speed-up.
    """

    case: str
    contender: str
    figure: str
    sign: str
    bound: float
    against: str | None = None


def by_figure(rounds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Convert figures per round to rounds per figure."""
    return {figure: [one[figure] for one in rounds] for figure in rounds[0]}


def against_targets(targets: Iterable[Target], rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The targets of measured contenders, each with its value over the rounds."""
    measured = {(row.case, row.contender): row for row in rows}
    outcomes = []
    for target in targets:
        row, name = measured.get((target.case, target.contender)), target.figure
        other = measured.get((target.case, target.against)) if target.against else None
        if row is None or (target.against and other is None):
            continue
        if other is not None:
            row, other = (other, row) if target.sign == "≥" else (row, other)
            name = f"{target.figure}, {row.contender} / {other.contender}"
        spread = row.spread(target.figure, other)
        if spread is not None:
            met = spread.median >= target.bound if target.sign == "≥" else spread.median <= target.bound
            about = {"name": name, "case": target.case, "contender": target.contender}
            about |= {"sign": target.sign, "bound": target.bound}
            outcomes.append(about | {"value": spread.median, "low": spread.low, "high": spread.high, "met": met})
    return outcomes


def report(
    title: str,
    rows: Sequence[Row],
    *,
    against: Mapping[str, Sequence[str]],
    targets: Iterable[Target] = (),
    remarks: str | None,
    options: argparse.Namespace,
) -> None:
    """Print the tables, and write all figures with command, versions and hardware to ``options.out``.

    Args:
        against: columns of ratios by heading; the denominator is the first of these contenders in the case.
        remarks: explanations of the figures.
    """
    outcomes = against_targets(targets, rows)
    document = {
        "what": Path(sys.argv[0]).stem,
        "title": title,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "config": {name: value for name, value in vars(options).items() if name != "out"},
        "environment": environment() | {"processors": processors()},
        "remarks": remarks,
        "rows": [
            {
                "case": row.case,
                "contender": row.contender,
                "seconds": {figure: spread._asdict() for figure in row.seconds if (spread := row.spread(figure))},
                **row.amounts,
            }
            for row in rows
        ],
        "targets": outcomes,
    }
    with atomic_write(options.out) as file:
        file.write(json.dumps(document, indent=2, default=str).encode() + b"\n")
    print(title)
    for case, of_case in groupby(rows, key=lambda row: row.case):
        print(f"\n{case}\n{_table([*of_case], against)}")
    if outcomes:
        headings = ["case", "contender", "figure", "target", "measured (range)", ""]
        print(f"\n{tabulate(map(describe_outcome, outcomes), headings, disable_numparse=True)}")
    print(f"written to {options.out.absolute()}", file=sys.stderr)


def _table(rows: Sequence[Row], against: Mapping[str, Sequence[str]]) -> str:
    """A table with one line per contender: the median of every figure, and its ratios with their range."""
    columns: list[tuple[str, str, Row | None]] = []
    for figure in dict.fromkeys(figure for row in rows for figure in (*row.seconds, *row.amounts)):
        columns.append((figure, figure, None))
        for heading, names in against.items():
            units = [row for name in names for row in rows if row.contender == name and row.spread(figure)]
            columns += [(heading, figure, unit) for unit in units[:1]]
    lines = [[row.contender, *(_cell(row, figure, over) for _, figure, over in columns)] for row in rows]
    headings = ["", *(heading for heading, _, _ in columns)]
    return tabulate(lines, headings, stralign="right", disable_numparse=True)


def _cell(row: Row, figure: str, over: Row | None) -> str:
    spread = row.spread(figure, over)
    if spread is None:
        return "-"
    if over is not None:
        return f"{spread.median:.3f}" + _range(spread.low, spread.high)
    if figure in row.seconds:
        return f"{spread.median * 1e3:.3f} ms"
    return f"{spread.median / 1e6:.1f} MB" if figure in ("saved", "peak") else f"{spread.median:.4f}"


def describe_outcome(outcome: Mapping[str, Any]) -> list[str]:
    """The cells of a table row: case, contender, figure, bound, measured value with its range, verdict."""
    value = f"{outcome['value']:.3f}" + _range(outcome["low"], outcome["high"])
    verdict = "met" if outcome["met"] else "**missed**"
    about = [outcome["case"], outcome["contender"], outcome["name"]]
    return [*about, f"{outcome['sign']} {outcome['bound']:g}", value, verdict]


def _range(low: float, high: float) -> str:
    return f" ({low:.2f}-{high:.2f})" if low != high else ""
