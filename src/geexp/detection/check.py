"""Read every image of a detection split once, and report what training would leave out or stop at."""

from dataclasses import dataclass, field
from itertools import chain

from geexp.config.errors import DataError
from geexp.config.schema import CheckDataConfig
from geexp.data.check import aligned
from geexp.data.decode import Decoder
from geexp.data.parallel import in_threads, meter
from geexp.detection.annotations import INVALID_BOX, UNKNOWN_IMAGE
from geexp.detection.coco import CROWDS, EMPTY_BOXES, NO_BOX, CocoImages
from geexp.detection.data import disagreement, exif_orientation, read_image

_LEFT_OUT = (NO_BOX, CROWDS, EMPTY_BOXES, INVALID_BOX, UNKNOWN_IMAGE)
_STEP = 64  # images of one task of a thread


@dataclass(frozen=True)
class BadImage:
    name: str
    reason: str


@dataclass
class SplitReport:
    """``boxes`` are those to learn from; ``left_out`` counts the others, and the images without any.

    ``clipped`` counts the boxes that end beyond their image, ``exif`` the images whose EXIF orientation is ignored;
    ``sizes`` lists the images whose pixels do not fit their annotations; ``notes`` are peculiarities of the file.
    """

    images: int
    classes: int
    boxes: int
    clipped: int
    left_out: dict[str, int]
    notes: list[str]
    exif: int = 0
    missing: list[BadImage] = field(default_factory=list)
    unreadable: list[BadImage] = field(default_factory=list)
    sizes: list[BadImage] = field(default_factory=list)

    @property
    def bad(self) -> list[BadImage]:
        return self.missing + self.unreadable + self.sizes


def check_split(images: CocoImages, backend: str, *, workers: int, what: str = "reading") -> SplitReport:
    """Decode every image with ``workers`` threads; bad ones are listed, in their order, and do not stop it.

    Args:
        images: all images of a split, opened with ``everything=True``.
    """
    left_out = dict.fromkeys(_LEFT_OUT, 0) | images.left_out
    report = SplitReport(len(images), len(images.classes), images.boxes, images.clipped, left_out, images.notes)
    decode = Decoder(backend)

    def check(indices: range) -> tuple[SplitReport, int]:
        """The bad images of a part, in a report of their own, and the bytes of its pixels."""
        part, size = SplitReport(0, 0, 0, 0, {}, []), 0
        for index in indices:
            name = images.name(index).encode(errors="backslashreplace").decode()  # JSON can hold any surrogates
            if not images.is_there(index):
                part.missing.append(BadImage(name, "there is no such file"))
                continue
            try:
                pixels = read_image(decode, images.name(index))
            except DataError as error:
                part.unreadable.append(BadImage(name, str(error.__cause__)))
                continue
            size += pixels.numel()
            if (reason := disagreement(images, index, pixels)) is not None:
                part.sizes.append(BadImage(name, reason))
            else:
                part.exif += exif_orientation(images.name(index)) > 1
        return part, size

    with meter(what, len(images)) as advance:
        for indices, (part, size) in in_threads(check, range(len(images)), step=_STEP, threads=workers):
            report.exif += part.exif
            report.missing += part.missing
            report.unreadable += part.unreadable
            report.sizes += part.sizes
            advance(len(indices), size)
    return report


def as_text(config: CheckDataConfig, splits: dict[str, SplitReport]) -> str:
    """A column for each split, then notes and every bad image, one a line."""
    names = ["images", "classes", "boxes", "boxes clipped to their image", *(f"left out: {what}" for what in _LEFT_OUT)]
    names += ["EXIF orientation ignored", "files missing", "cannot be read", "other size than annotated"]
    columns = [[f"data={config.data.name}", *names]]
    for split, report in splits.items():
        counts = [report.images, report.classes, report.boxes, report.clipped, *report.left_out.values(), report.exif]
        counts += map(len, (report.missing, report.unreadable, report.sizes))
        columns.append([split, *(f"{count:,}" for count in counts)])
    notes = [f"{split}: {note}" for split, report in splits.items() for note in report.notes]
    bad = [f"{split}: {one.name}: {one.reason}" for split, report in splits.items() for one in report.bad]
    return "\n".join(chain(aligned(columns), notes, bad))
