"""Are the data there? Asked before torch is imported or a run begins."""

from pathlib import Path

from geexp.config.errors import ConfigError
from geexp.config.schema import DataConfig

_FASHION = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]

# Relative to data.root; a file of Fashion-MNIST may be gzipped.
LAYOUTS: dict[str, list[str]] = {
    "fashion_mnist_mini": [],
    "fashion_mnist": [f"FashionMNIST/raw/{name}" for name in _FASHION],
    "cifar10": ["cifar-10-batches-py"],
    "cifar100": ["cifar-100-python"],
    "imagenet": ["train", "val"],
}


def require_data(data: DataConfig) -> None:
    """Raise ``ConfigError`` if something is missing: what was looked for, where, and the two ways to go on."""
    layout = LAYOUTS[data.name]
    if not layout:
        return
    if data.root is None:
        raise ConfigError(f"data.root=null: data={data.name} is read from a folder; say which with data.root=<folder>.")
    root = Path(data.root).expanduser()
    if data.download and data.name != "imagenet":
        return
    missing = [part for part in layout if not (root / part).exists() and not (root / f"{part}.gz").exists()]
    if not missing:
        return
    if data.name == "imagenet":
        second = (
            "or arrange it as train/<class>/*.JPEG and val/<class>/*.JPEG there "
            "(it cannot be downloaded without an account at its owners')"
        )
    else:
        second = "or let it be downloaded there with data.download=true"
    raise ConfigError(
        f"data={data.name}: {' and '.join(missing)} not found in {root.absolute()} (data.root). "
        f"Either say where the data are, with data.root=<folder> or GEEXP_DATA in the environment, {second}."
    )
