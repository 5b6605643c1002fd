"""What a feed benchmark found, as JSON and as tables."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from geexp.benchmarks.feeds import FeedReport, Pixels, Speed
from geexp.config.schema import BenchmarkConfig
from geexp.data.reading import processors
from geexp.records.environment import environment

_PATHS = ("train", "eval", "small")


def as_document(report: FeedReport, config: BenchmarkConfig) -> dict[str, Any]:
    """With all that is needed to know what the numbers are worth."""
    return {
        "what": config.what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
        "environment": {**environment(), "processors": processors()},
        "images": report.images,
        "speed": [{**asdict(row), "met": row.met} for row in report.speed],
        "pixels": [{**asdict(row), "met": row.met} for row in report.pixels],
    }


def print_tables(report: FeedReport, console: Console) -> None:
    caption = "ms of processor time, all threads and workers counted; x: times less of it than the reference"
    speed = Table(title=f"Feeds on {report.images}", caption=caption)
    speed.add_column("", no_wrap=True)
    for heading in ("ms/img", "img/s", "x", "range", "target"):
        speed.add_column(heading, justify="right", no_wrap=True)
    for path in _PATHS:
        speed.add_section()
        speed.add_row(f"[bold]{path}[/]")
        for row in report.speed:
            if row.path == path:
                numbers = (f"{row.milliseconds:.3f}", f"{row.images_per_second:,.0f}", f"{row.ratio:.2f}")
                spread = f"{row.low:.2f}-{row.high:.2f}"
                speed.add_row(row.feed, *numbers, spread, _target(row, "≥"))
    console.print(speed)
    pixels = Table(title="Mean difference from the reference's pixels, in levels of 255")
    for heading in ("", "feed"):
        pixels.add_column(heading, no_wrap=True)
    for heading in ("all images", "worst image", "target"):
        pixels.add_column(heading, justify="right")
    for difference in report.pixels:
        levels = (f"{difference.mean:.4f}", f"{difference.worst:.4f}")
        pixels.add_row(difference.path, difference.feed, *levels, _target(difference, "≤"))
    console.print(pixels)


def _target(row: Speed | Pixels, sign: str) -> str:
    if row.target is None:
        return ""
    return f"{sign} {row.target:g} {'[green]met[/]' if row.met else '[red]missed[/]'}"
