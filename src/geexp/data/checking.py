"""Reading a whole split once, to know what can be read of it before a training depends on it."""

import io
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from torch import Tensor

from geexp.config.errors import DataError
from geexp.data.decode import DAMAGED, Decoder
from geexp.data.images import Images
from geexp.data.meter import meter
from geexp.data.pack import AGAIN, EncodedPack, RawPack, first_damaged
from geexp.data.reading import Unreadable

# So many images are one task of a thread.
_IMAGES = 64


@dataclass(frozen=True)
class ClassSize:
    name: str
    images: int


@dataclass
class SplitReport:
    """Sizes are (width, height), None if nothing can be read.

    ``by_pillow`` counts, by format and mode, the images that the chosen decoder left to Pillow.
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
        DataError: for a pack that is not what its hashes say. Whatever was verified before is verified anew.
    """
    if isinstance(images, EncodedPack | RawPack):
        _verify_pack(images)
    report = _count_classes(images)
    decode = _KindsOfFallbacks(backend)

    def check(first: int) -> tuple[list[Unreadable], list[tuple[int, int]]]:
        unreadable, sizes = [], []
        for index in range(first, min(first + _IMAGES, len(images))):
            try:
                height, width, _ = images.pixels(index, decode).shape
                sizes.append((width, height))
            except DAMAGED as error:
                unreadable.append(Unreadable.of(images, index, error))
        return unreadable, sizes

    with meter(what, len(images)) as advance, ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
        try:
            for unreadable, sizes in pool.map(check, range(0, len(images), _IMAGES)):
                report.unreadable += unreadable
                report.smallest = min(filter(None, (report.smallest, *sizes)), key=_pixels, default=None)
                report.largest = max(filter(None, (report.largest, *sizes)), key=_pixels, default=None)
                advance(len(unreadable) + len(sizes), 3 * sum(map(_pixels, sizes)))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    report.by_pillow = dict(decode.kinds.most_common())
    return report


def _count_classes(images: Images) -> SplitReport:
    counts = np.bincount(images.labels, minlength=len(images.classes))
    few, many = (ClassSize(images.classes[i], int(counts[i])) for i in (counts.argmin(), counts.argmax()))
    return SplitReport(images=len(images), classes=len(images.classes), smallest_class=few, largest_class=many)


def _verify_pack(pack: EncodedPack | RawPack) -> None:
    bad = first_damaged(pack.path, pack.index.ends, pack.index.digests)
    if bad < len(pack):
        raise DataError(
            f"{pack.path} is damaged: {pack.relative_name(bad)} (image {bad}) is not what was packed. {AGAIN}"
        )


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


class _KindsOfFallbacks(Decoder):
    """A decoder that knows what it was that went to Pillow."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self.kinds: Counter[str] = Counter()
        self._counting = threading.Lock()

    def fall_back(self, content: np.ndarray) -> Tensor:
        pixels = super().fall_back(content)
        with Image.open(io.BytesIO(content.data)) as image, self._counting:
            self.kinds[f"{image.format} {image.mode}"] += 1
        return pixels
