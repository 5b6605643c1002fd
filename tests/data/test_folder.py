"""Folders of class folders: what torchvision's ImageFolder sees, remembered until something changes."""

import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv

from geexp.config.errors import DataError
from geexp.config.schema import FeedConfig
from geexp.data import folder as folder_module
from geexp.data.datasets import open_dataset
from geexp.data.folder import FolderImages
from tests.support.configuration import data_config

LONG_AGO = time.time() - 3600


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("GEEXP_CACHE", str(path))
    return path


def write(root: Path, *files: str) -> None:
    """Files of their own names, in folders that have not changed for an hour."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(file))
    settle(root)


def settle(root: Path) -> None:
    for path in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        os.utime(path, (LONG_AGO, LONG_AGO))


def names(images: FolderImages) -> list[str]:
    return [images.name(i) for i in range(len(images))]


ODD = (
    "cat/10.jpg",
    "cat/9.jpg",
    "cat/.hidden.jpg",
    "cat/UPPER.JPEG",
    "cat/Mixed.JpG",
    "cat/with space.png",
    "cat/ünïcödé-猫.webp",
    "cat/notes.txt",
    "cat/jpg",
    "cat/double.jpg.bak",
    "cat/nested/deep/1.tif",
    "cat/nested/2.tiff",
    "cat/nested.jpg",
    "cat/[red]bold[/red].bmp",
    "Dog and bird/1.ppm",
    "Dog and bird/1.pgm",
    "ärger/1.jpeg",
    "n01440764/n01440764_1.JPEG",
    "n01440764/.nested/2.JPEG",
    "loose.jpg",
)


def test_as_torchvision_sees_it(tmp_path):
    write(tmp_path, *ODD)
    (tmp_path / "linked").symlink_to(tmp_path / "cat")
    ours, theirs = FolderImages(tmp_path), tv.ImageFolder(str(tmp_path))
    assert ours.classes == theirs.classes
    assert names(ours) == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets
    assert [ours.content(i).tobytes() for i in range(len(ours))] == [Path(p).read_bytes() for p, _ in theirs.samples]


def test_a_hidden_folder_is_no_class(tmp_path):
    """Unlike in ImageFolder: notebooks and file managers leave such folders behind."""
    write(tmp_path, "a/1.jpg", "b/1.jpg", ".ipynb_checkpoints/1.jpg")
    assert FolderImages(tmp_path).classes == ["a", "b"]


def test_names_that_are_no_text(tmp_path, cache):
    write(tmp_path, "a/1.jpg", os.fsdecode(b"a/\xff\xfe.jpg"), os.fsdecode(b"b\xff/2.jpg"))
    first = FolderImages(tmp_path)
    assert [os.fsencode(Path(name).name) for name in names(first)] == [b"1.jpg", b"\xff\xfe.jpg", b"2.jpg"]
    assert names(FolderImages(tmp_path)) == names(first)
    assert FolderImages(tmp_path).content(1).tobytes() == b"a/\xff\xfe.jpg"


def must_not_scan(*_) -> None:
    raise AssertionError("read again")


def test_cached(tmp_path, monkeypatch, caplog):
    write(tmp_path, *ODD)
    with caplog.at_level(logging.INFO):
        first = FolderImages(tmp_path)
    assert "16 images in 4 class folders" in caplog.text
    monkeypatch.setattr(folder_module, "_scan", must_not_scan)
    second = FolderImages(tmp_path)
    assert names(second) == names(first)
    assert second.classes == first.classes
    assert second.labels.tolist() == first.labels.tolist()


def rename(old: str, new: str):
    return lambda root: (root / old).rename(root / new)


CHANGES = {
    "added": lambda root: (root / "a/2.jpg").touch(),
    "removed": lambda root: (root / "a/1.jpg").unlink(),
    "renamed": rename("a/1.jpg", "a/3.jpg"),
    "renamed nested": rename("a/nested/deep/1.jpg", "a/nested/deep/2.jpg"),
    "new class": lambda root: shutil.copytree(root / "b", root / "aa"),
    "no class": lambda root: shutil.rmtree(root / "b"),
    "renamed class": rename("a", "z"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(tmp_path, name):
    write(tmp_path, "a/0.jpg", "a/1.jpg", "a/nested/1.jpg", "a/nested/deep/1.jpg", "b/1.jpg")
    before = names(FolderImages(tmp_path))
    CHANGES[name](tmp_path)
    ours, theirs = FolderImages(tmp_path), tv.ImageFolder(str(tmp_path))
    assert names(ours) != before
    assert names(ours) == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets


def test_a_folder_that_changed_just_now_is_not_trusted(tmp_path):
    """Coarse clocks of file systems: a second change may leave the time stamp as it is."""
    write(tmp_path, "a/1.jpg")
    moment = time.time_ns() - 500_000_000
    os.utime(tmp_path / "a", ns=(moment, moment))
    assert len(FolderImages(tmp_path)) == 1
    (tmp_path / "a/2.jpg").touch()
    os.utime(tmp_path / "a", ns=(moment, moment))
    assert len(FolderImages(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "another format", "pickle"])
def test_a_damaged_cache_is_written_again(tmp_path, cache, monkeypatch, damage):
    write(tmp_path, *ODD)
    first = names(FolderImages(tmp_path))
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "another format":
        with np.load(file) as arrays:
            np.savez(file, **{**arrays, "format": np.array(0)})
    elif damage == "pickle":
        with np.load(file) as arrays:
            np.savez(file, **{**arrays, "classes": np.array([print], dtype=object)}, allow_pickle=True)
    else:
        content[len(content) // 2] ^= 0xFF
        file.write_bytes({"empty": b"", "cut": content[:-100], "flipped": content}[damage])
    assert names(FolderImages(tmp_path)) == first
    monkeypatch.setattr(folder_module, "_scan", must_not_scan)
    assert names(FolderImages(tmp_path)) == first
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, caplog):
    write(tmp_path / "data", "a/1.jpg")
    (tmp_path / "a file").touch()
    monkeypatch.setenv("GEEXP_CACHE", str(tmp_path / "a file" / "cache"))
    with caplog.at_level(logging.INFO):
        assert len(FolderImages(tmp_path / "data")) == 1
    assert "not cached" in caplog.text


def test_a_relative_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    write(tmp_path, "data/a/1.jpg")
    monkeypatch.chdir(tmp_path)
    images = FolderImages(Path("data"))
    monkeypatch.chdir("/")
    assert images.content(0).tobytes() == b"data/a/1.jpg"


def test_an_empty_folder_is_named(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/notes.txt", "val/a/1.jpg", "val/b/1.jpg")
    config = data_config("data=imagenet", f"data.root={tmp_path}", "data.num_classes=2")
    with pytest.raises(DataError, match=r"class folder .*train/b has no image \(\.jpg, "):
        open_dataset(config, FeedConfig("folder"), train=True)
    with pytest.raises(ValueError, match="has no class folders"):
        FolderImages(tmp_path / "train/a")


def test_an_index_is_as_large_as_its_names(tmp_path):
    """1.28 million strings would be 120 MB, copied into every worker process."""
    files = [f"{label}/n{i:08d}.JPEG" for label in ("n01440764", "n01443537") for i in range(1000)]
    write(tmp_path, *files)
    images = FolderImages(tmp_path)
    size = sum(array.nbytes for array in vars(images.index).values())
    assert size < 2000 * (len("n00000000.JPEG") + 16) + 1000  # a label and an end are 8 bytes each
    assert [images.relative_name(i) for i in range(2000)] == files
