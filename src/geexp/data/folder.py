"""Class folders of image files as a data set."""

import os
from pathlib import Path

import numpy as np

from geexp.data.folder_index import name_at, read_folder
from geexp.data.images import EncodedImages
from geexp.data.record import names_record
from geexp.runs.data_record import SplitRecord


class FolderImages(EncodedImages):
    """``<folder>/<class>/**/<file>``; classes and files in the order of their names, as torchvision's ``ImageFolder``.

    Raises:
        DataError: see ``read_folder``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.index = read_folder(self.folder)
        self.classes: list[str] = self.index.classes.tolist()
        self.labels = self.index.labels

    def relative_name(self, index: int) -> str:
        return f"{self.classes[self.labels[index]]}/{name_at(self.index.names, self.index.ends, index)}"

    def name(self, index: int) -> str:
        return f"{self.folder}/{self.relative_name(index)}"

    def size(self, index: int) -> int:
        return os.stat(self.name(index)).st_size

    def content(self, index: int) -> np.ndarray:
        return np.fromfile(self.name(index), dtype=np.uint8)

    def record(self) -> SplitRecord:
        return names_record(self.classes, self.labels, self.index.names, self.index.ends, with_class=False)
