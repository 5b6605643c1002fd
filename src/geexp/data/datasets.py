"""The data sets: images and labels before any augmentation."""

import gzip
import hashlib
import pickle
import tarfile
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import torchvision.datasets as tv

from geexp.config.class_folders import class_folders as folder_of_split
from geexp.config.class_folders import require_same_classes
from geexp.config.compose import is_ours
from geexp.config.errors import ConfigError, DataError, UserError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.folder import FolderImages
from geexp.data.images import ArrayImages, Images, MapStyleImages
from geexp.data.pack import Pack, open_pack
from geexp.data.presence import pack_folder
from geexp.registry import bound, locate

SPLITS = {"train": "training", "val": "evaluation"}


def open_dataset(data: DataConfig, feed: FeedConfig, *, train: bool) -> Images:
    """The training or the evaluation split, reduced to the first ``data.keep_classes`` classes if that is set.

    Raises:
        ConfigError: if the classes or the size of the images differ from the configuration, or a user's own data set
            does not take the arguments.
        DataError: if files are damaged, the two splits have different classes, or a pack lacks images that are needed.
    """
    split = "train" if train else "val"
    if feed.name != "pack" and not is_ours(data._target_):
        whole: Images = _users_own(data, train)
    else:
        root = Path(str(data.root))
        try:
            if feed.name == "pack":
                whole = open_pack(pack_folder(data, feed), split, data.recipe)
            else:
                options: dict[str, object] = {"root": root} if data.root is not None else {}
                options |= {"download": True} if data.download else {}
                whole = locate(str(data._target_))(train=train, **options, **data.arguments)
        except UserError:
            raise
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            raise DataError(f"data={data.name}: the files in {root.absolute()} cannot be used. {error}") from error
    images = require_classes(whole, data, split)
    if isinstance(images, Pack) and images.left_out and feed.on_error == "stop":
        raise DataError(
            f"{images.path} was made without {len(images.left_out)} images that could not be read, such as "
            f"{images.left_out[0]}. To train without them too: feed.on_error=skip."
        )
    if feed.name == "resident" and not isinstance(images, ArrayImages):
        raise ConfigError(f"feed=resident: data={data.name} gives its images one by one. Use feed=reference.")
    if isinstance(images, ArrayImages | MapStyleImages) and data.evaluation_crop is None and len(images):
        width, height = images.picture(0).size
        if (height, width) != (data.image_size, data.image_size):
            raise ConfigError(
                f"data.image_size={data.image_size}: the images of data={data.name} are {width}x{height} and are "
                "not resized; data.evaluation_crop=centre with feed=reference resizes them."
            )
    return images


def require_classes(whole: Images, data: DataConfig, split: str) -> Images:
    """The images of the classes that the configuration keeps; raises ``ConfigError`` if it has another number."""
    found, key = len(whole.classes), "num_classes" if data.keep_classes is None else "keep_classes"
    wanted = getattr(data, key)
    if found != wanted if data.keep_classes is None else found < wanted:
        raise ConfigError(f"data.{key}={wanted}: data={data.name} has {found} classes in its {SPLITS[split]} split.")
    return whole if data.keep_classes is None else whole.first_classes(data.keep_classes)


def _users_own(data: DataConfig, train: bool) -> MapStyleImages:
    """The data set that the user's ``_target_`` makes; an exception of that code keeps its traceback."""
    where = {key: value for key, value in (("root", data.root), ("download", data.download)) if value}
    try:
        make = bound(str(data._target_), where | data.arguments, called_with=("train",))
    except ValueError as error:
        raise ConfigError(f"data._target_={error}.") from error
    return MapStyleImages(make(train=train), str(data._target_), data.num_classes)


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
    return read_cifar(root, tv.CIFAR10, train=train, download=download)


def cifar100(*, root: Path, train: bool, download: bool = False) -> ArrayImages:
    """The official archive, packed or unpacked."""
    return read_cifar(root, tv.CIFAR100, train=train, download=download)


def class_folders(*, root: Path, train: bool) -> FolderImages:
    """``train/<class>/…`` and ``val/<class>/…``, which must have the same classes (``DataError``)."""
    require_same_classes(*(list(folder_of_split(root / split).folders) for split in SPLITS), where=root)
    return FolderImages(root / ("train" if train else "val"))


def imagenet(*, root: Path, train: bool) -> FolderImages:
    """ImageNet-1K as class folders."""
    return class_folders(root=root, train=train)


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


def read_cifar(root: Path, official: type[tv.CIFAR10], *, train: bool, download: bool = False) -> ArrayImages:
    """A split of CIFAR-10 or -100 as ``uint8 [N, 32, 32, 3]``, from the unpacked folder in ``root`` or the archive.

    Args:
        official: the class of torchvision that records names and MD5 of the published files.

    Raises:
        ValueError: for a file that differs from the published one. It is not unpickled.
        OSError: for a missing one.
    """
    if download:
        official(str(root), train=train, download=True)
    wanted = {official.meta["filename"]: official.meta["md5"]}
    wanted |= dict(official.train_list if train else official.test_list)
    contents = _contents(root, official, list(wanted))
    for name, md5 in wanted.items():
        found = hashlib.md5(contents[name], usedforsecurity=False).hexdigest()
        if found != md5:
            raise ValueError(
                f"{official.base_folder}/{name} is not the official file (MD5 {found}, not {md5}) and is not opened, "
                "since a pickle can run any code. Fetch the archive again."
            )
    meta, *batches = [pickle.loads(contents[name], encoding="latin1") for name in wanted]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([batch.get("labels") or batch["fine_labels"] for batch in batches])
    return ArrayImages(np.ascontiguousarray(images), labels, list(meta[official.meta["key"]]))


def _contents(root: Path, official: type[tv.CIFAR10], names: list[str]) -> dict[str, bytes]:
    folder = root / official.base_folder
    if folder.is_dir():
        return {name: (folder / name).read_bytes() for name in names}
    contents = {}
    try:
        with tarfile.open(root / official.filename) as archive:
            for member in archive:  # in its order: going back in a gzipped file means to unpack it again
                name = member.name.rpartition("/")[2]
                if name in names and member.isfile():
                    contents[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{official.filename} cannot be unpacked: {error}. Fetch it again.") from error
    missing = sorted(set(names) - contents.keys())
    if missing:
        raise ValueError(f"{official.filename} does not contain {', '.join(missing)}. Fetch it again.")
    return contents
