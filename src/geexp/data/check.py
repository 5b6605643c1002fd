"""Read every image of a split once and report the ones that cannot be read."""

import io
import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from geexp.config.schema import CheckDataConfig
from geexp.data.decode import DAMAGED, Decoder
from geexp.data.images import Images
from geexp.data.pack import Pack
from geexp.data.parallel import in_threads, meter
from geexp.data.reading import Unreadable, printable

_STEP = 64  # images of one task of a thread


@dataclass(frozen=True)
class ClassSize:
    name: str
    images: int


@dataclass
class SplitReport:
    """Sizes are (width, height), None if nothing can be read.

    ``by_pillow`` counts, by format and mode, the images that fell back to Pillow.
    """

    images: int
    classes: int
    smallest_class: ClassSize
    largest_class: ClassSize
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    by_pillow: dict[str, int] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)


def check_images(images: Images, backend: str, *, workers: int, what: str = "reading") -> SplitReport:
    """Decode every image with ``workers`` threads; damaged ones are listed, in their order, and do not stop it.

    Raises:
        DataError: for a pack that does not match its hashes, which are verified anew.
    """
    if isinstance(images, Pack):
        images.require_sound()
    counts = np.bincount(images.labels, minlength=len(images.classes))
    few, many = (ClassSize(images.classes[i], int(counts[i])) for i in (counts.argmin(), counts.argmax()))
    report = SplitReport(len(images), len(images.classes), smallest_class=few, largest_class=many)
    decode = _CountingDecoder(backend)

    def check(indices: range) -> tuple[list[Unreadable], list[tuple[int, int]]]:
        unreadable, sizes = [], []
        for index in indices:
            try:
                height, width, _ = images.pixels(index, decode).shape
                sizes.append((width, height))
            except DAMAGED as error:
                unreadable.append(Unreadable.of(images, index, error))
        return unreadable, sizes

    with meter(what, len(images)) as advance:
        for indices, (unreadable, sizes) in in_threads(check, range(len(images)), step=_STEP, threads=workers):
            report.unreadable += unreadable
            report.smallest = min(filter(None, (report.smallest, *sizes)), key=_pixels, default=None)
            report.largest = max(filter(None, (report.largest, *sizes)), key=_pixels, default=None)
            advance(len(indices), 3 * sum(map(_pixels, sizes)))
    report.by_pillow = dict(decode.kinds.most_common())
    return report


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


class _CountingDecoder(Decoder):
    """Counts what falls back to Pillow by format and mode."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self.kinds: Counter[str] = Counter()
        self._counting = threading.Lock()

    def fall_back(self, content: np.ndarray) -> Tensor:
        pixels = super().fall_back(content)
        with Image.open(io.BytesIO(content.data)) as image, self._counting:
            self.kinds[f"{image.format} {image.mode}"] += 1
        return pixels


def as_json(config: CheckDataConfig, splits: Mapping[str, Any], **bad: int) -> str:
    """The reports of the splits, dataclasses, with the number of ``bad`` images of all of them under that name."""
    document = {
        "data": config.data.name,
        "root": config.data.root,
        "feed": config.feed.name,
        **bad,
        "splits": {name: asdict(report) for name, report in splits.items()},
    }
    return json.dumps(document, indent=2)


def as_text(config: CheckDataConfig, splits: dict[str, SplitReport]) -> str:
    """A column for each split, then every image that cannot be read, one a line."""
    columns = [[f"data={config.data.name}", "images", "classes", "smallest class", "largest class"]]
    columns[0] += ["smallest image", "largest image", "read by Pillow", "cannot be read"]
    for split, report in splits.items():
        counts = [f"{count:,}" for count in (report.images, report.classes)]
        classes = [f"{printable(one.name)}: {one.images:,}" for one in (report.smallest_class, report.largest_class)]
        sizes = ["-" if size is None else f"{size[0]}x{size[1]}" for size in (report.smallest, report.largest)]
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.by_pillow.items()) or "0"
        columns.append([split, *counts, *classes, *sizes, kinds, f"{len(report.unreadable):,}"])
    lines = aligned(columns)
    for split, report in splits.items():
        lines += [f"{split} {one.index}: {one.name}: {one.reason}" for one in report.unreadable]
    return "\n".join(lines)


def aligned(columns: list[list[str]]) -> list[str]:
    """The lines of a table; its first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for first, *cells in zip(*columns, strict=True)
    ]
