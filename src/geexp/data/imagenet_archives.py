"""The official archives of ILSVRC2012, read in place: tars are not compressed, so their files have an offset.

Order, labels and names are those of class folders ``<WordNet id>/<file>``.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from geexp.config.errors import DataError
from geexp.data.folder_index import join_names, name_at
from geexp.data.images import EncodedImages
from geexp.data.parallel import with_bar
from geexp.registry import options

TRAINING, VALIDATION, DEVKIT = options("data")["imagenet"]["archives"]

_BLOCK = 512  # the unit of tar; a block of zeros ends an archive


class ArchiveImages(EncodedImages):
    """Image files within one archive.

    Args:
        files: name, offset and size of each image.
    """

    def __init__(self, archive: Path, classes: list[str], labels: list[int], files: list[tuple[str, int, int]]) -> None:
        self.archive, self.classes = archive, classes
        self.labels = np.array(labels, dtype=np.int64)
        self._names, self._name_ends = join_names(name for name, _, _ in files)
        self._places = np.array([place for _, *place in files], dtype=np.int64)

    def relative_name(self, index: int) -> str:
        return f"{self.classes[self.labels[index]]}/{name_at(self._names, self._name_ends, index)}"

    def name(self, index: int) -> str:
        return f"{self.archive}: {self.relative_name(index)}"

    def size(self, index: int) -> int:
        return int(self._places[index, 1])

    def content(self, index: int) -> np.ndarray:
        offset, size = self._places[index].tolist()
        return np.fromfile(self.archive, dtype=np.uint8, count=size, offset=offset)


def open_training_archive(root: Path) -> ArchiveImages:
    """A tar of one tar per class, ``n01440764.tar``, of ``n01440764_10026.JPEG`` and so on.

    Raises:
        DataError: if it is truncated or damaged.
    """
    archive = root / TRAINING
    labels: list[int] = []
    files: list[tuple[str, int, int]] = []
    with archive.open("rb") as file:
        parts = sorted(_members(file, 0, archive.stat().st_size), key=lambda part: part[0])
        classes = [name.removesuffix(".tar") for name, _, _ in parts]
        for label, (_, offset, size) in enumerate(with_bar(parts, f"reading {archive}", len(parts))):
            images = sorted(_members(file, offset, offset + size))
            files += images
            labels += [label] * len(images)
    return ArchiveImages(archive, classes, labels, files)


def open_validation_archive(root: Path) -> ArchiveImages:
    """A tar of ``ILSVRC2012_val_00000001.JPEG`` and so on; the classes are in the development kit.

    Raises:
        DataError: if one of the two is truncated or damaged, or they do not fit together.
    """
    archive = root / VALIDATION
    with archive.open("rb") as file:
        files = sorted(_members(file, 0, archive.stat().st_size))
    wnids = _validation_wnids(root / DEVKIT)
    if len(wnids) != len(files):
        raise DataError(f"{archive} has {len(files)} images and {root / DEVKIT} has {len(wnids)} labels.")
    classes = sorted(set(wnids))
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    ordered = sorted(zip((label_of[wnid] for wnid in wnids), files, strict=True))
    return ArchiveImages(archive, classes, [label for label, _ in ordered], [file for _, file in ordered])


def _members(file: BinaryIO, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the files in the tar that lies between two places of an open file."""
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    yield Path(member.name).name, member.offset_data, member.size
            stopped = tar.offset  # tarfile treats an unreadable header as the end
        file.seek(stopped)
        if stopped + _BLOCK > end or file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"it ends early, at byte {stopped:,}")
    except tarfile.TarError as error:
        raise DataError(
            f"{file.name} is truncated or damaged: {error}. Compare its MD5 with the site's, and download it again."
        ) from error


def _validation_wnids(devkit: Path) -> list[str]:
    """The WordNet id of every validation image, in the order of the images' names."""
    from scipy.io import loadmat  # needed for these archives only, and slow to import

    inside = "ILSVRC2012_devkit_t12/data"
    try:
        with tarfile.open(devkit) as tar:
            truth = tar.extractfile(f"{inside}/ILSVRC2012_validation_ground_truth.txt")
            meta = tar.extractfile(f"{inside}/meta.mat")
            assert truth is not None
            assert meta is not None
            ids = [int(line) for line in truth.read().split()]
            synsets = loadmat(meta, squeeze_me=True)["synsets"]
        # Those with children are inner nodes of WordNet, and label no image.
        leaves = synsets[synsets["num_children"] == 0]
        wnid_of = dict(zip(leaves["ILSVRC2012_ID"].tolist(), leaves["WNID"].tolist(), strict=True))
        return [str(wnid_of[identifier]) for identifier in ids]
    except Exception as error:  # gzip, tarfile and scipy each raise their own for a damaged file
        raise DataError(f"{devkit} is not the development kit of ILSVRC2012, or is damaged: {error!r}") from error
