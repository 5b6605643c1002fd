"""CIFAR-10 and CIFAR-100 in their official form for Python, packed or not; pickles only with the right checksum."""

import gzip
import hashlib
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torchvision.datasets as tv

from geexp.data.images import ArrayImages


@dataclass(frozen=True)
class CifarArchive:
    """The archive's name, its folder, and the (file, MD5) of each split and of the class names."""

    archive: str
    folder: str
    train: list[tuple[str, str]]
    test: list[tuple[str, str]]
    meta: tuple[str, str]
    labels: str
    names: str


def _official(kind: type[tv.CIFAR10], labels: str) -> CifarArchive:
    """What torchvision records of the archives that the owners of the data publish."""
    return CifarArchive(
        archive=kind.filename,
        folder=kind.base_folder,
        train=[(name, md5) for name, md5 in kind.train_list],
        test=[(name, md5) for name, md5 in kind.test_list],
        meta=(kind.meta["filename"], kind.meta["md5"]),
        labels=labels,
        names=kind.meta["key"],
    )


CIFAR10 = _official(tv.CIFAR10, "labels")
CIFAR100 = _official(tv.CIFAR100, "fine_labels")


def read_cifar(root: Path, official: CifarArchive, *, train: bool) -> ArrayImages:
    """A split as ``uint8 [N, 32, 32, 3]``, from the unpacked folder below ``root`` or else from the archive there.

    Raises:
        ValueError: for a file that is not, byte for byte, what its owners published. It is not unpickled.
        OSError: for a missing one.
    """
    wanted = [official.meta, *(official.train if train else official.test)]
    files = _contents(root, official, [name for name, _ in wanted])
    for name, md5 in wanted:
        found = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
        if found != md5:
            raise ValueError(
                f"{official.folder}/{name} is not the official file (MD5 {found}, not {md5}) and is not opened, since "
                "a pickle can run any code. Fetch the archive again."
            )
    meta, *batches = [pickle.loads(files[name], encoding="latin1") for name, _ in wanted]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([batch[official.labels] for batch in batches])
    return ArrayImages(np.ascontiguousarray(images), labels, list(meta[official.names]))


def _contents(root: Path, official: CifarArchive, names: list[str]) -> dict[str, bytes]:
    folder = root / official.folder
    if folder.is_dir():
        return {name: (folder / name).read_bytes() for name in names}
    contents = {}
    try:
        with tarfile.open(root / official.archive) as archive:
            for member in archive:  # in its order: going back in a gzipped file means to unpack it again
                name = member.name.rpartition("/")[2]
                if name in names and member.isfile():
                    contents[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{official.archive} cannot be unpacked: {error}. Fetch it again.") from error
    missing = sorted(set(names) - contents.keys())
    if missing:
        raise ValueError(f"{official.archive} does not contain {', '.join(missing)}. Fetch it again.")
    return contents
