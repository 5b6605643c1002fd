"""What a check of the data found, as text or as JSON."""

import json
import os
from dataclasses import asdict

from geexp.config.schema import CheckDataConfig
from geexp.data.checking import ClassSize, SplitReport


def as_json(config: CheckDataConfig, splits: dict[str, SplitReport]) -> str:
    document = {
        "data": config.data.name,
        "root": config.data.root,
        "feed": config.feed.name,
        "unreadable": sum(len(report.unreadable) for report in splits.values()),
        "splits": {name: asdict(report) for name, report in splits.items()},
    }
    return json.dumps(document, indent=2)


def as_text(config: CheckDataConfig, splits: dict[str, SplitReport]) -> str:
    """A column for each split, then every image that cannot be read, one a line."""
    reports = splits.values()
    rows = [
        (f"data={config.data.name}", list(splits)),
        ("images", [f"{r.images:,}" for r in reports]),
        ("classes", [f"{r.classes:,}" for r in reports]),
        ("smallest class", [_class(r.smallest_class) for r in reports]),
        ("largest class", [_class(r.largest_class) for r in reports]),
        ("smallest image", [_size(r.smallest) for r in reports]),
        ("largest image", [_size(r.largest) for r in reports]),
        ("read by Pillow", [_kinds(r.by_pillow) for r in reports]),
        ("cannot be read", [f"{len(r.unreadable):,}" for r in reports]),
    ]
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(splits))]
    left = max(len(heading) for heading, _ in rows)
    lines = [
        "  ".join([heading.ljust(left), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for heading, cells in rows
    ]
    for split, report in splits.items():
        lines += [f"{split} {one.index}: {_printable(one.name)}: {one.reason}" for one in report.unreadable]
    return "\n".join(lines)


def _class(size: ClassSize) -> str:
    return f"{_printable(size.name)}: {size.images:,}"


def _size(size: tuple[int, int] | None) -> str:
    return "-" if size is None else f"{size[0]}x{size[1]}"


def _kinds(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "0"


def _printable(name: str) -> str:
    """File names are bytes, and not all of them are text."""
    return os.fsencode(name).decode(errors="backslashreplace")
