"""Folders of class folders: what torchvision's ImageFolder sees, remembered until something changes."""

import errno
import logging
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv

from geexp.config.errors import DataError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data import folder_index
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


def two_classes(root: Path) -> DataConfig:
    return data_config("data=imagenet", f"data.root={root}", "data.num_classes=2")


ODD = (
    "cat/10.jpg",
    "cat/9.jpg",
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


def test_hidden_files_and_folders_are_passed_over_at_every_level(tmp_path):
    """Unlike in ImageFolder: notebooks, file managers and Macs leave them behind."""
    hidden = [".ipynb_checkpoints/1.jpg", "a/._1.jpg", "a/.ipynb_checkpoints/1-checkpoint.jpg", "a/more/.git/1.jpg"]
    write(tmp_path, "a/1.jpg", "a/more/2.jpg", "b/1.jpg", "._b", *hidden)
    images = FolderImages(tmp_path)
    assert images.classes == ["a", "b"]
    assert [images.relative_name(i) for i in range(len(images))] == ["a/1.jpg", "a/more/2.jpg", "b/1.jpg"]
    write(tmp_path / "b", "cat/1.jpg", "dog/._1.jpg")
    with pytest.raises(DataError, match=r"class folder .*/dog has no image \(\.jpg, "):
        FolderImages(tmp_path / "b")


UP = {
    "to itself as a folder": ("a/up", "."),
    "to its class": ("a/more/up", ".."),
    "to all classes": ("a/up", ".."),
    "to both splits": ("a/more/up", "../../.."),
    "to the root of the file system": ("a/up", "/"),
    "as a class": ("up", "."),
    "through a folder elsewhere": ("a/away", "../../elsewhere"),
    "to itself as a link": ("a/up", "up"),
}


@pytest.mark.parametrize("name", UP)
def test_links_that_lead_back_up_are_not_followed(tmp_path, name):
    write(tmp_path, "train/a/1.jpg", "train/a/more/2.jpg", "train/b/3.jpg", "val/a/4.jpg", "elsewhere/5.jpg")
    link, target = UP[name]
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "train/a")
    (tmp_path / "train" / link).symlink_to(target)
    settle(tmp_path)
    for _ in range(2):  # the second time from the cache
        images = FolderImages(tmp_path / "train")
        found = [images.relative_name(i) for i in range(len(images))]
        assert found == ["a/1.jpg", *["a/away/5.jpg"] * (link == "a/away"), "a/more/2.jpg", "b/3.jpg"]


def test_links_to_somewhere_else_are_followed_each_time(tmp_path):
    write(tmp_path, "store/cats/1.jpg", "train/b/3.jpg")
    for link in ("a", "c", "b/cats"):
        (tmp_path / "train" / link).symlink_to(tmp_path / "store/cats")
    images = FolderImages(tmp_path / "train")
    assert [images.relative_name(i) for i in range(len(images))] == ["a/1.jpg", "b/3.jpg", "b/cats/1.jpg", "c/1.jpg"]


@pytest.mark.parametrize("place", ["c", "a/more"])
def test_a_link_to_a_folder_that_is_gone_is_an_error(tmp_path, place):
    """Such as one to a disk that is not mounted. One to an image is found by reading it, as any damaged image."""
    write(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "a/2.jpg").symlink_to("nowhere.jpg")
    assert len(FolderImages(tmp_path)) == 3
    (tmp_path / place).symlink_to("/mnt/not mounted/c")
    with pytest.raises(DataError, match=f"{place} cannot be read: No such file or directory"):
        FolderImages(tmp_path)


def test_a_link_that_is_pointed_elsewhere_is_another_folder(tmp_path):
    """The folders of both may have the same time stamps, as after unpacking an archive."""
    for root in ("flowers", "cars"):
        write(tmp_path / root, "a/1.jpg", f"a/{root}.jpg")
    link = tmp_path / "current"
    link.symlink_to("flowers")
    assert len([name for name in names(FolderImages(link)) if "flowers" in name]) == 1
    link.unlink()
    link.symlink_to("cars")
    assert not [name for name in names(FolderImages(link)) if "flowers" in name]


@pytest.mark.parametrize("where", ["", "a", "a/nested/deep"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_read_is_an_error_and_not_empty(tmp_path, monkeypatch, where, code):
    write(tmp_path, "a/1.jpg", "a/nested/deep/2.jpg", "b/1.jpg")
    bad, scandir = str(tmp_path / where), os.scandir

    def refuse(path="."):
        if os.fspath(path) == bad:
            raise OSError(code, os.strerror(code), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"{re.escape(bad)} cannot be read: {os.strerror(code)}"):
        FolderImages(tmp_path)


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
    assert "14 images in 4 class folders" in caplog.text
    monkeypatch.setattr(folder_index, "_scan", must_not_scan)
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
    monkeypatch.setattr(folder_index, "_scan", must_not_scan)
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
    with pytest.raises(DataError, match=r"class folder .*train/b has no image \(\.jpg, "):
        open_dataset(two_classes(tmp_path), FeedConfig("folder"), train=True)


@pytest.mark.parametrize(("files", "found"), [(["1.jpg", ".hidden/1.jpg"], "images directly in it and"), ([], "has")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_class_folders(tmp_path, split, files, found):
    write(tmp_path, *(f"{name}/{label}/1.jpg" for name in ("train", "val") for label in "ab"))
    shutil.rmtree(tmp_path / split)
    (tmp_path / split).mkdir()
    write(tmp_path / split, *files)
    with pytest.raises(DataError, match=rf"/{split} .*{found} no class folders.*{split}/<class>/\*"):
        open_dataset(two_classes(tmp_path), FeedConfig("folder"), train=True)


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("train", "val", "parts"),
    [
        ("abcdefg", "afh", ["only train has b, c, d, e, g", "only val has h", "(7 and 3)"]),
        ("abcdefghi", "a", ["only train has b, c, d, e, f and 3 more"]),
        (["a", "b"], ["a", "b", "b "], ["only val has 'b '"]),
        (["a", COMPOSED], ["a", DECOMPOSED], [r"'caf\xe9' (NFC) in train", r"'cafe\u0301' (NFD) in val", "Rename"]),
        (["a", DECOMPOSED], ["a", "b"], [r"only train has 'cafe\u0301' (NFD)", "only val has b"]),
        ([COMPOSED, DECOMPOSED], [COMPOSED, DECOMPOSED], [r"'cafe\u0301' (NFD) and 'caf\xe9' (NFC)", "train has two"]),
    ],
)
def test_splits_of_different_classes(tmp_path, train, val, parts):
    write(tmp_path, *(f"{split}/{name}/1.jpg" for split, names in (("train", train), ("val", val)) for name in names))
    with pytest.raises(DataError) as caught:
        open_dataset(two_classes(tmp_path), FeedConfig("folder"), train=False)
    assert [part for part in [str(tmp_path), *parts] if part not in str(caught.value)] == []


def test_an_index_is_as_large_as_its_names(tmp_path):
    """1.28 million strings would be 120 MB, copied into every worker process."""
    files = [f"{label}/n{i:08d}.JPEG" for label in ("n01440764", "n01443537") for i in range(1000)]
    write(tmp_path, *files)
    images = FolderImages(tmp_path)
    size = sum(array.nbytes for array in vars(images.index).values())
    assert size < 2000 * (len("n00000000.JPEG") + 16) + 1000  # a label and an end are 8 bytes each
    assert [images.relative_name(i) for i in range(2000)] == files
