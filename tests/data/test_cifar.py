"""CIFAR's official archives: read as torchvision reads them, and nothing unpickled that differs from the published."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv

from geexp.config.errors import DataError
from geexp.config.schema import FeedConfig
from geexp.data.datasets import open_dataset, read_cifar
from tests.conftest import environment
from tests.support.cifar import IMAGES, TRAIN, SmallArchive, checksums, small_cifar10, small_cifar100
from tests.support.configuration import data_config


@pytest.fixture
def cifar10(tmp_path) -> SmallArchive:
    return small_cifar10(tmp_path)


def read(small: SmallArchive, *, train: bool = True):
    return read_cifar(small.root, small.official, train=train)


def test_torchvision_has_the_official_checksums():
    assert (tv.CIFAR10.filename, tv.CIFAR10.base_folder) == ("cifar-10-python.tar.gz", "cifar-10-batches-py")
    assert list(tv.CIFAR10.train_list[0]) == ["data_batch_1", "c99cafc152244af753f735de768cd75f"]
    assert [list(pair) for pair in tv.CIFAR10.test_list] == [["test_batch", "40351d587109b95175f43aff81a1287e"]]
    assert (tv.CIFAR100.meta["filename"], tv.CIFAR100.meta["md5"]) == ("meta", "7973b15100ade9c7d40fb424638fde48")
    splits = (tv.CIFAR10.train_list, tv.CIFAR100.train_list, tv.CIFAR100.test_list)
    assert [len(split) for split in splits] == [5, 1, 1]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("make", [small_cifar10, small_cifar100])
def test_packed_and_unpacked_as_torchvision_reads_it(make, train, tmp_path):
    small = make(tmp_path)
    small.pack()
    packed = read(small, train=train)
    assert not (tmp_path / small.official.base_folder).exists()  # reading leaves nothing behind
    small.unpack()
    unpacked, theirs = read(small, train=train), small.official(str(tmp_path), train=train)
    for ours in (packed, unpacked):
        assert ours.images.dtype == np.uint8
        assert ours.images.flags.c_contiguous
        assert np.array_equal(ours.images, theirs.data)
        assert ours.labels.tolist() == theirs.targets
        assert ours.classes == theirs.classes


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pack", "unpack"])
@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_a_tampered_file_is_not_unpickled(cifar10, file, form, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    pickle.loads(bomb)
    (tmp_path / "executed").rmdir()  # it would have worked
    cifar10.files[file] = bomb
    getattr(cifar10, form)()
    with pytest.raises(ValueError, match=rf"cifar-10-batches-py/{file} is not the official file.*is not opened"):
        read(cifar10)
    assert not (tmp_path / "executed").exists()
    if file == "data_batch_3":  # evaluation does not need it
        assert len(read(cifar10, train=False)) == IMAGES


def test_a_truncated_or_damaged_archive(cifar10):
    path = cifar10.pack()
    whole = path.read_bytes()
    damaged = [whole[:end] for end in (0, 1, 100, len(whole) // 2, len(whole) - 1000)]
    places = range(5, len(whole), len(whole) // 40)
    damaged += [whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :] for place in places]
    for content in damaged:
        path.write_bytes(content)
        try:  # a change may lie in what is not looked at, the time stamps of members for instance
            images = read(cifar10)
        except ValueError as error:
            assert "etch" in str(error)  # noqa: PT017 - of many damages each must name the way out
        else:
            assert len(content) == len(whole)
            assert len(images) == 5 * IMAGES


def test_a_missing_member(cifar10):
    cifar10.pack(without="data_batch_4")
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz .*data_batch_4. Fetch it again"):
        read(cifar10)
    cifar10.unpack()
    (cifar10.root / "cifar-10-batches-py/data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_4"):
        read(cifar10)


def test_a_damaged_file_of_a_data_set_is_the_users_error(tmp_path, monkeypatch):
    small = small_cifar100(tmp_path)
    monkeypatch.setattr(tv, "CIFAR100", small.official)
    config, feed = data_config("data=cifar100", f"data.root={tmp_path}"), FeedConfig("resident")
    small.unpack()
    assert open_dataset(config, feed, train=False).picture(0).size == (32, 32)
    small.files["test"] += b"."
    small.unpack()
    with pytest.raises(DataError, match=r"data=cifar100: .*cifar-100-python/test is not the official file"):
        open_dataset(config, feed, train=False)


def test_a_real_run(cifar10, tmp_path):
    cifar10.pack()
    settings = ["data=cifar10", f"data.root={tmp_path}", "optim.batch_size=10", "trainer=cpu", "trainer.max_epochs=1"]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, checksums(cifar10), *settings, "logger=none"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("outputs/cifar10/**/result.json")
    assert json.loads(result.read_text())["identity"]["data"]["name"] == "cifar10"
