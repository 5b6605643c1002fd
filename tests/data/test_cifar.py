"""CIFAR's official archives, made here in small with the official layout, keys and pickles of Python 2."""

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torchvision.datasets as tv

from geexp.config.errors import DataError
from geexp.config.schema import FeedConfig
from geexp.data import datasets
from geexp.data.cifar import CIFAR10, CIFAR100, CifarArchive, read_cifar
from geexp.data.datasets import open_dataset
from tests.conftest import environment
from tests.support.configuration import data_config

IMAGES = 20
CLASSES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CLASSES100 = [f"fine {i}" for i in range(100)]


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


def batch(name: str, seed: int, **labels: int) -> dict:
    """``labels``: the keys, and of how many classes they are."""
    random = np.random.default_rng(seed)
    return {
        "batch_label": name,
        **{key: [int(i) % classes for i in range(seed, seed + IMAGES)] for key, classes in labels.items()},
        "data": random.integers(0, 20, (IMAGES, 3072), dtype=np.uint8),  # which gzip can compress
        "filenames": [f"{name}_s_{i:06d}.png" for i in range(IMAGES)],
    }


@dataclass
class Official:
    """The files of an archive, and the list of checksums that belongs to them."""

    files: dict[str, bytes]
    archive: CifarArchive
    root: Path

    def unpack(self) -> None:
        for name, content in self.files.items():
            path = self.root / self.archive.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    def pack(self, without: str = "") -> Path:
        with tarfile.open(self.root / self.archive.archive, "w:gz") as archive:
            folder = tarfile.TarInfo(self.archive.folder)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for name, content in self.files.items():
                if name != without:
                    member = tarfile.TarInfo(f"{self.archive.folder}/{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return self.root / self.archive.archive


def official(files: dict[str, bytes], like: CifarArchive, root: Path) -> Official:
    def checked(names: list[str]) -> list[tuple[str, str]]:
        return [(name, hashlib.md5(files[name]).hexdigest()) for name in names]

    train, test = (checked([name for name, _ in split]) for split in (like.train, like.test))
    return Official(files, replace(like, train=train, test=test, meta=checked([like.meta[0]])[0]), root)


@pytest.fixture
def cifar10(tmp_path) -> Official:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {name: pickled(batch(name, seed, labels=10)) for seed, name in enumerate(names)}
    files["batches.meta"] = pickled({"num_cases_per_batch": IMAGES, "label_names": CLASSES10, "num_vis": 3072})
    return official({"readme.html": b"<html/>", **files}, CIFAR10, tmp_path)


@pytest.fixture
def cifar100(tmp_path) -> Official:
    files = {
        name: pickled(batch(name, seed, fine_labels=100, coarse_labels=20))
        for seed, name in ((0, "train"), (7, "test"))
    }
    files["meta"] = pickled({"fine_label_names": CLASSES100, "coarse_label_names": [f"coarse {i}" for i in range(20)]})
    return official(files, CIFAR100, tmp_path)


def theirs(of: Official, kind: type[tv.CIFAR10], train: bool) -> tv.CIFAR10:
    """torchvision's reader with the checksums of these files."""

    class Small(kind):
        train_list: ClassVar = [list(pair) for pair in of.archive.train]
        test_list: ClassVar = [list(pair) for pair in of.archive.test]
        meta = kind.meta | {"filename": of.archive.meta[0], "md5": of.archive.meta[1]}

    return Small(str(of.root), train=train)


def test_the_pickles_are_as_python_2_made_them(cifar10):
    content = cifar10.files["data_batch_1"]
    assert content.startswith(b"\x80\x02}q")
    assert b"cnumpy.core.multiarray\n_reconstruct" in content
    assert set(pickle.loads(content, encoding="bytes")) == {b"batch_label", b"labels", b"data", b"filenames"}
    assert set(pickle.loads(content, encoding="latin1")) == {"batch_label", "labels", "data", "filenames"}


def test_the_official_checksums():
    assert CIFAR10.archive == "cifar-10-python.tar.gz"
    assert CIFAR10.folder == "cifar-10-batches-py"
    assert CIFAR10.train[0] == ("data_batch_1", "c99cafc152244af753f735de768cd75f")
    assert CIFAR10.test == [("test_batch", "40351d587109b95175f43aff81a1287e")]
    assert CIFAR100.meta == ("meta", "7973b15100ade9c7d40fb424638fde48")
    assert [len(split) for split in (CIFAR10.train, CIFAR100.train, CIFAR100.test)] == [5, 1, 1]


@pytest.mark.parametrize("form", ["packed", "unpacked"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_as_torchvision_reads_it(name, train, form, request):
    of: Official = request.getfixturevalue(name)
    if form == "packed":
        of.pack()
    else:
        of.unpack()
    ours = read_cifar(of.root, of.archive, train=train)
    if form == "packed":
        assert not (of.root / of.archive.folder).exists()  # reading leaves nothing behind
        of.unpack()
    expected = theirs(of, tv.CIFAR10 if name == "cifar10" else tv.CIFAR100, train)
    assert ours.images.shape == (IMAGES * len(of.archive.train if train else of.archive.test), 32, 32, 3)
    assert ours.images.dtype == np.uint8
    assert np.array_equal(ours.images, expected.data)
    assert ours.labels.tolist() == expected.targets
    assert ours.classes == expected.classes
    assert ours.images.flags.c_contiguous


def test_channels_rows_and_columns(cifar10):
    """Each row of ``data`` is a plane of red, of green and of blue, row after row."""
    cifar10.unpack()
    data = pickle.loads(cifar10.files["data_batch_1"], encoding="latin1")["data"]
    image = read_cifar(cifar10.root, cifar10.archive, train=True).images[3]
    for channel, row, column in ((0, 0, 0), (0, 0, 1), (1, 5, 2), (2, 31, 31)):
        assert image[row, column, channel] == data[3, 1024 * channel + 32 * row + column]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["packed", "unpacked"])
@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_a_tampered_file_is_not_unpickled(cifar10, file, form, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    pickle.loads(bomb)
    (tmp_path / "executed").rmdir()  # it would have worked
    cifar10.files[file] = bomb
    if form == "packed":
        cifar10.pack()
    else:
        cifar10.unpack()
    with pytest.raises(ValueError, match=rf"cifar-10-batches-py/{file} is not the official file.*is not opened"):
        read_cifar(cifar10.root, cifar10.archive, train=True)
    assert not (tmp_path / "executed").exists()


def test_one_bit(cifar10):
    content = bytearray(cifar10.files["test_batch"])
    content[-500] ^= 1
    cifar10.files["test_batch"] = bytes(content)
    cifar10.unpack()
    with pytest.raises(ValueError, match="test_batch is not the official file"):
        read_cifar(cifar10.root, cifar10.archive, train=False)
    assert len(read_cifar(cifar10.root, cifar10.archive, train=True)) == 5 * IMAGES  # which needs none of it


def test_a_truncated_or_damaged_archive(cifar10):
    whole = cifar10.pack().read_bytes()
    path = cifar10.root / cifar10.archive.archive
    damaged = [whole[:end] for end in (0, 1, 10, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1000)]
    damaged += [
        whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :]
        for place in range(5, len(whole), len(whole) // 150)
    ]
    for content in damaged:
        path.write_bytes(content)
        try:  # a change may lie in what is not looked at, the time stamps of members for instance
            images = read_cifar(cifar10.root, cifar10.archive, train=True)
        except ValueError as error:
            assert "etch" in str(error)  # noqa: PT017 - of many damages each must say what to do
        else:
            assert len(content) == len(whole)
            assert len(images) == 5 * IMAGES


def test_a_missing_member(cifar10):
    cifar10.pack(without="data_batch_4")
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz does not contain data_batch_4. Fetch it again"):
        read_cifar(cifar10.root, cifar10.archive, train=True)
    cifar10.unpack()
    (cifar10.root / "cifar-10-batches-py/data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_4"):
        read_cifar(cifar10.root, cifar10.archive, train=True)


def test_as_a_data_set(cifar10, cifar100, monkeypatch):
    cifar10.pack()
    cifar100.unpack()
    monkeypatch.setattr(datasets, "CIFAR10", cifar10.archive)
    monkeypatch.setattr(datasets, "CIFAR100", cifar100.archive)
    for name, train in (("cifar10", True), ("cifar100", False)):
        config = data_config(f"data={name}", f"data.root={cifar10.root}")
        images = open_dataset(config, FeedConfig("resident"), train=train)
        assert len(images) == IMAGES * (5 if name == "cifar10" else 1)
        assert images.picture(0).size == (32, 32)
    cifar100.files["test"] += b"."
    cifar100.unpack()
    with pytest.raises(DataError, match=r"data=cifar100: .*cifar-100-python/test is not the official file"):
        open_dataset(data_config("data=cifar100", f"data.root={cifar10.root}"), FeedConfig("resident"), train=False)


# Trains with the checksums of the small archive instead of the official ones.
TRAIN = """
import json, sys
from geexp.data import datasets
from geexp.data.cifar import CifarArchive
from geexp.train import main
datasets.CIFAR10 = CifarArchive(**json.loads(sys.argv.pop(1)))
main()
"""


def test_a_real_run(cifar10, tmp_path):
    cifar10.pack()
    settings = ["data=cifar10", f"data.root={tmp_path}", "optim.batch_size=10", "trainer=cpu", "trainer.max_epochs=1"]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(cifar10.archive.__dict__), *settings, "logger=none"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("outputs/cifar10/**/result.json")
    assert json.loads(result.read_text())["identity"]["data"]["name"] == "cifar10"
