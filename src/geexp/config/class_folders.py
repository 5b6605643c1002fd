"""Class folders, ``train/<class>/…``: which entries count, and the name and the number of classes. No torch."""

import errno
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from geexp.config.constraints import expand_home
from geexp.config.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Folder:
    """A folder that was listed.

    Args:
        path: as reached, through links.
        real: the path without links, preceded by that of every folder from which a link was followed.
        folders: the names of its folders with the ``real`` of each, sorted.
        files: the names of its image files, sorted.
    """

    path: str
    real: tuple[str, ...]
    folders: dict[str, tuple[str, ...]]
    files: list[str]


def list_folder(path: str | Path, real: tuple[str, ...] | None = None) -> Folder:
    """List a folder without hidden entries (``.name``) and links that lead back up to a folder that contains it.

    Raises:
        DataError: if it cannot be read, or has a link to nothing that is no image, since it may stand for a folder.
    """
    path = os.fspath(path)
    real = (os.path.realpath(path),) if real is None else real
    folders, files = {}, []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    if entry.name.lower().endswith(SUFFIXES):
                        files.append(entry.name)
                elif not entry.is_symlink():
                    folders[entry.name] = (*real[:-1], os.path.join(real[-1], entry.name))
                else:
                    target = os.path.realpath(entry.path)
                    if not any(f"{place}/".startswith(f"{target.rstrip('/')}/") for place in real):
                        folders[entry.name] = (*real, target)
    except OSError as error:
        raise _unreadable(error, path) from error
    return Folder(path, real, dict(sorted(folders.items())), sorted(files))


def walk_folders(top: Folder) -> Iterator[Folder]:
    """``top`` and all folders below it; raises ``DataError`` for one that cannot be read."""
    yield top
    for name, real in top.folders.items():
        yield from walk_folders(list_folder(os.path.join(top.path, name), real))


def class_folders(folder: Path) -> Folder:
    """The folder of a split; its ``folders`` are the classes.

    Raises:
        DataError: if it cannot be read, has no class folders, or two whose names look the same.
    """
    split = list_folder(folder)
    if not split.folders:
        found = "images directly in it and no class folders" if split.files else "no class folders"
        raise DataError(
            f"{folder} has {found}. Sort the images into {folder}/<class>/*, with the same classes in train and val."
        )
    alike: dict[str, str] = {}
    for name in split.folders:
        other = alike.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise DataError(
                f"{folder} has two class folders of the same name in different Unicode forms, {_escaped(other)} and "
                f"{_escaped(name)}. Merge or rename them."
            )
    return split


def require_same_classes(train: Sequence[str], val: Sequence[str], *, where: Path) -> None:
    """Raise ``DataError`` for classes that only one split has, which would shift the labels of the other.

    ``where`` is the folder of both, for the message.
    """
    only = {"train": sorted(set(train) - set(val)), "val": sorted(set(val) - set(train))}
    if not any(only.values()):
        return
    by_form = {unicodedata.normalize("NFC", name): name for name in only["train"]}
    for name in only["val"]:
        other = by_form.get(unicodedata.normalize("NFC", name))
        if other is not None:
            raise DataError(
                f"{where}: train and val have a class of the same name in different Unicode forms: {_escaped(other)} "
                f"in train, {_escaped(name)} in val. Rename one of the two folders to the other's exact name."
            )
    listed = [f"only {split} has {several(names)}" for split, names in only.items() if names]
    counts = f"{len(set(train)):,} and {len(set(val)):,}"
    raise DataError(
        f"{where}: train and val have different classes ({counts}): {'; '.join(listed)}. Both need the same class "
        "folders: rename, add or remove those named."
    )


def visible(name: str) -> str:
    """A name for messages, escaped if it is not what it looks like: ``'cafe\\u0301' (NFD)``."""
    plain = name.isprintable() and name == name.strip() and unicodedata.is_normalized("NFC", name)
    return name if plain else _escaped(name)


def several(names: list[str], most: int = 5) -> str:
    """``a, b, c and 7 more``, for messages."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(visible, names[:most])) + more


def is_there(path: Path) -> bool:
    """Whether a file or folder exists; raises ``DataError`` if a folder above it cannot be read."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(error, path) from error
    return True


def count_classes(root: str | None) -> int:
    """The number of class folders in ``<root>/train``, or of classes in a pack in ``root``.

    Raises:
        ConfigError: if there is neither.
        DataError: see ``class_folders``.
    """
    folder = _folder(root)
    if is_there(folder / "train"):
        return len(class_folders(folder / "train").folders)
    for pack in sorted(folder.glob("pack-*/train.npz")):
        try:
            with zipfile.ZipFile(pack) as arrays, arrays.open("classes.npy") as array:
                shape = re.search(rb"'shape': \((\d+),", array.read(200))  # the header, read without importing numpy
        except (OSError, KeyError, zipfile.BadZipFile):
            continue
        if shape:
            return int(shape[1])
    raise ConfigError(
        f"data.root={root}: cannot count the classes, {folder / 'train'} does not exist. Set data.root=<folder> to a "
        "folder with train/<class>/* and val/<class>/*; for a pack elsewhere, set the number of classes with "
        "data.num_classes=<n> and data.total_classes=<n>."
    )


def folder_name(root: str | None) -> str:
    """The name of a folder, which is the default name of its data set."""
    name = os.fsencode(_folder(root).name).decode(errors="backslashreplace")  # text, in any locale
    return name or "images"


def register_resolvers() -> None:
    """``${geexp.expand_home:<path>}``, ``${geexp.folder_name:<folder>}`` and ``${geexp.count_classes:<folder>}``."""
    OmegaConf.register_new_resolver("geexp.expand_home", lambda path: expand_home("outputs", str(path)), replace=True)
    OmegaConf.register_new_resolver("geexp.folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("geexp.count_classes", count_classes, replace=True)


def _folder(root: str | None) -> Path:
    if root is None:
        raise ConfigError("data.root=null: set the folder of the images with data.root=<folder>.")
    return Path(os.path.abspath(expand_home("data.root", str(root))))


def _escaped(name: str) -> str:
    forms = [form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)]
    return ascii(name) + (f" ({forms[0]})" if len(forms) == 1 else "")


def _unreadable(error: OSError, path: str | Path) -> DataError:
    return DataError(
        f"{error.filename or path} cannot be read: {error.strerror}. Make it readable, or move it elsewhere."
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        image = entry.name.lower().endswith(SUFFIXES)
        return stat.S_ISDIR(entry.stat().st_mode) if entry.is_symlink() and not image else entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise
