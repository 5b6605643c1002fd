"""What follows from a folder ``train/<class>/…`` for a configuration: a name and the number of classes. No torch."""

import os
import re
import zipfile
from pathlib import Path

from omegaconf import OmegaConf

from geexp.config.errors import ConfigError


def class_folders(folder: Path) -> list[str]:
    """The names of the classes, in order; hidden folders are none."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def count_classes(root: str | None) -> int:
    """The number of class folders in ``<root>/train``, or of the classes of a pack in ``root``.

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
        f"data.root={root}: there is no folder {folder / 'train'} whose classes could be counted. Give the folder that "
        "has train/<class>/* and val/<class>/*, with data.root=<folder>; or, for a pack elsewhere, say how many "
        "classes there are, with data.num_classes=<n> and data.total_classes=<n>."
    )


def folder_name(root: str | None) -> str:
    """The name of a folder, by which a data set is called."""
    return _folder(root).name or "images"


def register_resolvers() -> None:
    """``${geexp.folder_name:<folder>}`` and ``${geexp.count_classes:<folder>}``."""
    OmegaConf.register_new_resolver("geexp.folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("geexp.count_classes", count_classes, replace=True)


def _folder(root: str | None) -> Path:
    if root is None:
        raise ConfigError("data.root=null: the images are read from a folder; give it with data.root=<folder>.")
    return Path(os.path.abspath(os.path.expanduser(str(root))))
