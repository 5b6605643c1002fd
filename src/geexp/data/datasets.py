"""The data sets: what the images and labels are, image by image, before any augmentation."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets as tv
from PIL import Image
from torch.utils.data import Dataset

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig
from geexp.data.presence import LAYOUTS


class ArrayImages(Dataset):
    """Images held as one uint8 array ``[N, H, W]``, given out as PIL images."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])


def open_dataset(data: DataConfig, *, train: bool) -> Dataset:
    """The training or the evaluation split: a sized data set of (PIL image, label).

    Raises:
        ConfigError: if the number of classes found is not ``data.num_classes``.
        DataError: if files are damaged.
    """
    if data.name == "fashion_mnist_mini":
        split = "train" if train else "test"
        with files("geexp.data").joinpath("fashion_mnist_mini.npz").open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            return ArrayImages(arrays[f"{split}_images"], arrays[f"{split}_labels"])
    root = Path(str(data.root)).expanduser()
    try:
        dataset = _open_with_torchvision(data, root, train)
    except (RuntimeError, OSError, EOFError) as error:
        raise DataError(f"data={data.name}: the files in {root.absolute()} cannot be used. {error}") from error
    if len(dataset.classes) != data.num_classes:
        raise ConfigError(
            f"data.num_classes={data.num_classes}: {root.absolute()} has {len(dataset.classes)} classes in its "
            f"{'training' if train else 'evaluation'} split."
        )
    return dataset


def _open_with_torchvision(data: DataConfig, root: Path, train: bool) -> Any:
    if data.name == "fashion_mnist":
        # torchvision unpacks gzipped files where it would otherwise download them, after checking their sums.
        packed = any(not (root / name).exists() for name in LAYOUTS[data.name])
        return tv.FashionMNIST(str(root), train=train, download=data.download or packed)
    if data.name == "cifar10":
        return tv.CIFAR10(str(root), train=train, download=data.download)
    if data.name == "cifar100":
        return tv.CIFAR100(str(root), train=train, download=data.download)
    return tv.ImageFolder(str(root / ("train" if train else "val")))
