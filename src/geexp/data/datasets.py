"""The data sets: what the images and labels are, before any augmentation."""

import gzip
from importlib.resources import files
from pathlib import Path

import numpy as np
import torchvision.datasets as tv

from geexp.config.compose import is_ours
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.cifar import CIFAR10, CIFAR100, read_cifar
from geexp.data.folder import FolderImages
from geexp.data.folder import class_folders as folders_of_classes
from geexp.data.images import ArrayImages, Images, MapStyleImages, Split
from geexp.data.pack import EncodedPack, RawPack, open_pack
from geexp.data.presence import pack_folder
from geexp.registry import locate


def open_dataset(data: DataConfig, feed: FeedConfig, *, train: bool) -> Images:
    """The training or the evaluation split, or of it the first ``data.keep_classes`` classes in their order.

    Raises:
        ConfigError: if the classes or the size of the images are not what the configuration says.
        DataError: if files are damaged, the two splits have different classes, or a pack lacks images that are needed.
    """
    root = Path(str(data.root)).expanduser()
    try:
        whole = _open(data, feed, root, train)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if isinstance(error, (ConfigError, DataError)):
            raise
        raise DataError(f"data={data.name}: the files in {root.absolute()} cannot be used. {error}") from error
    images = _kept(whole, data, "training" if train else "evaluation")
    if isinstance(images, EncodedPack | RawPack) and images.left_out and feed.on_error == "stop":
        raise DataError(
            f"{images.path} was made without {len(images.left_out)} images that could not be read, such as "
            f"{images.left_out[0]}. To train without them too: feed.on_error=skip."
        )
    if isinstance(images, ArrayImages) and data.evaluation_crop is None:
        height, width = images.images.shape[1:3]
        if (height, width) != (data.image_size, data.image_size):
            raise ConfigError(
                f"data.image_size={data.image_size}: the images of data={data.name} are {width}x{height} and are "
                "not resized; data.evaluation_crop=centre with feed=reference resizes them."
            )
    return images


def _kept(whole: Split, data: DataConfig, split: str) -> Images:
    found = len(whole.classes)
    if data.keep_classes is None:
        if found != data.num_classes:
            raise ConfigError(
                f"data.num_classes={data.num_classes}: data={data.name} has {found} classes in its {split} split."
            )
        return whole
    if found < data.keep_classes:
        raise ConfigError(
            f"data.keep_classes={data.keep_classes}: data={data.name} has only {found} classes in its {split} split."
        )
    return whole.first_classes(data.keep_classes)


def _open(data: DataConfig, feed: FeedConfig, root: Path, train: bool) -> Split:
    if feed.name == "pack":
        return open_pack(pack_folder(data, feed), "train" if train else "val", data.recipe)
    place = {} if data.root is None else {"root": root if is_ours(data._target_) else str(root)}
    download = {"download": True} if data.download else {}
    images = locate(str(data._target_))(train=train, **place, **download, **data.arguments)
    return images if is_ours(data._target_) else MapStyleImages(images, data.num_classes)


def fashion_mnist_mini(*, train: bool) -> ArrayImages:
    """The images that come with the package."""
    split = "train" if train else "test"
    with files("geexp.data").joinpath("fashion_mnist_mini.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        return ArrayImages(arrays[f"{split}_images"], arrays[f"{split}_labels"])


def fashion_mnist(*, root: Path, train: bool, download: bool = False) -> ArrayImages:
    """The four IDX files below ``FashionMNIST/raw``, gzipped or not."""
    if download:
        tv.FashionMNIST(str(root), train=train, download=True)
    stem = root / "FashionMNIST" / "raw" / ("train" if train else "t10k")
    return ArrayImages(read_idx(Path(f"{stem}-images-idx3-ubyte")), read_idx(Path(f"{stem}-labels-idx1-ubyte")))


def cifar10(*, root: Path, train: bool, download: bool = False) -> ArrayImages:
    """The official archive, packed or unpacked."""
    if download:
        tv.CIFAR10(str(root), train=train, download=True)
    return read_cifar(root, CIFAR10, train=train)


def cifar100(*, root: Path, train: bool, download: bool = False) -> ArrayImages:
    """The official archive, packed or unpacked."""
    if download:
        tv.CIFAR100(str(root), train=train, download=True)
    return read_cifar(root, CIFAR100, train=train)


def class_folders(*, root: Path, train: bool) -> FolderImages:
    """``train/<class>/…`` and ``val/<class>/…``, which must have the same classes.

    Raises:
        ValueError: naming classes that only one of the two has: labels follow from the order of the folders, which a
            difference would shift.
    """
    train_classes, val_classes = (set(folders_of_classes(root / split)) for split in ("train", "val"))
    only = sorted(train_classes ^ val_classes)
    if only:
        raise ValueError(f"Only one of train and val has the class folders {', '.join(only[:5])}.")
    return FolderImages(root / ("train" if train else "val"))


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
