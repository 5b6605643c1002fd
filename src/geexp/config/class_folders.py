"""The name and the number of classes of a data set in class folders, ``train/<class>/…``. No torch."""

import os
import re
import zipfile
from pathlib import Path

from omegaconf import OmegaConf

from geexp.config.constraints import expand_home
from geexp.config.errors import ConfigError


def class_folders(folder: Path) -> list[str]:
    """The names of the classes, sorted; hidden folders are ignored."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def count_classes(root: str | None) -> int:
    """The number of class folders in ``<root>/train``, or of classes in a pack in ``root``.

    Raises:
        ConfigError: if there is neither.
    """
    folder = _folder(root)
    if (folder / "train").is_dir():
        return len(class_folders(folder / "train"))
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
