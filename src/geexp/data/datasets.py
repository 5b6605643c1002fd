"""The data sets: what the images and labels are, image by image, before any augmentation."""

import gzip
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets as tv
from PIL import Image
from torch.utils.data import Dataset

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig


class ArrayImages(Dataset):
    """Images held as one uint8 array ``[N, H, W]``, given out as PIL images."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.classes = [str(label) for label in np.unique(labels)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])


def open_dataset(data: DataConfig, *, train: bool) -> Dataset:
    """The training or the evaluation split: a sized data set of (PIL image, label).

    Raises:
        ConfigError: if the classes or the size of the images are not what the configuration says.
        DataError: if files are damaged, or the two splits have different classes.
    """
    root = Path(str(data.root)).expanduser()
    try:
        dataset = _open(data, root, train)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise DataError(f"data={data.name}: the files in {root.absolute()} cannot be used. {error}") from error
    split = "training" if train else "evaluation"
    if len(dataset.classes) != data.num_classes:
        raise ConfigError(
            f"data.num_classes={data.num_classes}: data={data.name} has {len(dataset.classes)} classes in its {split} "
            "split."
        )
    if data.evaluation_crop is None:
        size = dataset[0][0].size
        if size != (data.image_size, data.image_size):
            raise ConfigError(
                f"data.image_size={data.image_size}: the images of data={data.name} are {size[0]}x{size[1]} and are "
                "not resized; data.evaluation_crop=centre resizes them."
            )
    return dataset


def _open(data: DataConfig, root: Path, train: bool) -> Any:
    if data.name == "fashion_mnist_mini":
        split = "train" if train else "test"
        with files("geexp.data").joinpath("fashion_mnist_mini.npz").open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            return ArrayImages(arrays[f"{split}_images"], arrays[f"{split}_labels"])
    if data.name == "fashion_mnist":
        if data.download:
            tv.FashionMNIST(str(root), train=train, download=True)
        stem = root / "FashionMNIST" / "raw" / ("train" if train else "t10k")
        return ArrayImages(read_idx(Path(f"{stem}-images-idx3-ubyte")), read_idx(Path(f"{stem}-labels-idx1-ubyte")))
    if data.name == "cifar10":
        return tv.CIFAR10(str(root), train=train, download=data.download)
    if data.name == "cifar100":
        return tv.CIFAR100(str(root), train=train, download=data.download)
    classes = {split: {path.name for path in (root / split).iterdir() if path.is_dir()} for split in ("train", "val")}
    only = sorted(classes["train"] ^ classes["val"])
    if only:  # labels are given by the order of the folders: a difference would shift them without a word
        raise ValueError(f"Only one of train and val has the class folders {', '.join(only[:5])}.")
    return tv.ImageFolder(str(root / ("train" if train else "val")))


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes (Fashion-MNIST's format), or its gzipped form beside it, as an array.

    torchvision reads unpacked files only, and unpacks only the very archives that it would download.
    """
    packed = path.with_name(f"{path.name}.gz")
    content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    dimensions = content[3] if content[:3] == b"\x00\x00\x08" else 0
    shape = tuple(np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).tolist())
    if not shape or len(content) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise ValueError(f"{path.name} is not a whole IDX file.")
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
