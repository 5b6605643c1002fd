"""CIFAR's official archives in small, with the official layout, keys and pickles of Python 2."""

import hashlib
import io
import json
import pickle
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torchvision.datasets as tv

IMAGES = 20
CLASSES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CLASSES100 = [f"fine {i}" for i in range(100)]

# Trains with the checksums of small archives instead of the official ones; the first argument is ``checksums(…)``.
TRAIN = """
import json, sys
import torchvision.datasets
from geexp.train import main
for name, lists in json.loads(sys.argv.pop(1)).items():
    for key, value in lists.items():
        setattr(getattr(torchvision.datasets, name), key, value)
main()
"""


class Python2Pickler(pickle._Pickler):
    """Pickles as Python 2 did, in which the archives were made: strings are bytes without a word about it."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_str(self, value: str) -> None:
        self.save_bytes(value.encode("latin1"))

    dispatch[bytes], dispatch[str] = save_bytes, save_str


def pickled(value: dict) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@dataclass
class SmallArchive:
    """The files of an archive, and torchvision's class with the checksums of these files."""

    files: dict[str, bytes]
    official: type[tv.CIFAR10]
    root: Path

    def unpack(self) -> None:
        for name, content in self.files.items():
            path = self.root / self.official.base_folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    def pack(self, without: str = "") -> Path:
        with tarfile.open(self.root / self.official.filename, "w:gz") as archive:
            folder = tarfile.TarInfo(self.official.base_folder)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for name, content in self.files.items():
                if name != without:
                    member = tarfile.TarInfo(f"{self.official.base_folder}/{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return self.root / self.official.filename


def small_cifar10(root: Path, classes: int = 10) -> SmallArchive:
    """``IMAGES`` of the first ``classes`` classes in each file."""
    names = [name for name, _ in (*tv.CIFAR10.train_list, *tv.CIFAR10.test_list)]
    files = {name: pickled(_batch(name, seed, labels=classes)) for seed, name in enumerate(names)}
    files["batches.meta"] = pickled({"num_cases_per_batch": IMAGES, "label_names": CLASSES10, "num_vis": 3072})
    return _small(files, tv.CIFAR10, root)


def small_cifar100(root: Path, classes: int = 100) -> SmallArchive:
    seeds = {"train": 0, "test": 7 if classes == 100 else 0}
    files = {
        name: pickled(_batch(name, seed, fine_labels=classes, coarse_labels=min(20, classes)))
        for name, seed in seeds.items()
    }
    files["meta"] = pickled({"fine_label_names": CLASSES100, "coarse_label_names": [f"coarse {i}" for i in range(20)]})
    return _small(files, tv.CIFAR100, root)


def checksums(*archives: SmallArchive) -> str:
    """The first argument of ``TRAIN``."""

    def lists(official: type[tv.CIFAR10]) -> dict:
        return {key: getattr(official, key) for key in ("train_list", "test_list", "meta")}

    return json.dumps({small.official.__mro__[1].__name__: lists(small.official) for small in archives})


def _batch(name: str, seed: int, **labels: int) -> dict:
    """``labels``: the keys, and the number of their classes."""
    random = np.random.default_rng(seed)
    return {
        "batch_label": name,
        **{key: [int(i) % classes for i in range(seed, seed + IMAGES)] for key, classes in labels.items()},
        "data": random.integers(0, 20, (IMAGES, 3072), dtype=np.uint8),  # which gzip can compress
        "filenames": [f"{name}_s_{i:06d}.png" for i in range(IMAGES)],
    }


def _small(files: dict[str, bytes], kind: type[tv.CIFAR10], root: Path) -> SmallArchive:
    def checked(names: list[str]) -> list[list[str]]:
        return [[name, hashlib.md5(files[name]).hexdigest()] for name in names]

    class Small(kind):
        train_list: ClassVar = checked([name for name, _ in kind.train_list])
        test_list: ClassVar = checked([name for name, _ in kind.test_list])
        meta: ClassVar = kind.meta | {"md5": hashlib.md5(files[kind.meta["filename"]]).hexdigest()}

    return SmallArchive(files, Small, root)
