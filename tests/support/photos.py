"""Images as data sets have them, in class folders."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n01484850")


def photo(seed: int, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Smooth and coloured like a photograph, so that JPEG and resizing behave as on one."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def write_imagenet(root: Path) -> Path:
    """An ImageNet-shaped folder of three classes, with a grey, a CMYK and a PNG image among the photographs."""
    for split in ("train", "val"):
        write_classes(root / split, CLASSES, 3, lambda label, i: photo(10 * label + i, (300 + 50 * i, 260)))
    train = root / "train"
    photo(100, (256, 300), "L").save(train / "n01440764/grey.JPEG")
    photo(101, (256, 300), "CMYK").save(train / "n01443537/cmyk.JPEG")
    photo(102, (256, 300)).save(train / "n01484850/png.JPEG", format="PNG")
    return root


def write_classes(folder: Path, classes, number: int, image=lambda label, i: photo(100 * label + i, (60, 48))) -> None:
    """``<class>/<class>_<i>.JPEG``."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            image(label, i).save(folder / name / f"{name}_{i}.JPEG")
