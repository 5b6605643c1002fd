"""Folders of images as data sets have them."""

import numpy as np
import pytest
from PIL import Image


def photo(seed: int, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Smooth and coloured like a photograph, so that JPEG and resizing behave as on one."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def imagenet(tmp_path):
    """An ImageNet-shaped folder of three classes, with a grey, a CMYK and a PNG image among the photographs."""
    for split in ("train", "val"):
        for label, name in enumerate(("n01440764", "n01443537", "n01484850")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                photo(10 * label + i, (300 + 50 * i, 260)).save(folder / f"{name}_{i}.JPEG")
    train = tmp_path / "train"
    photo(100, (256, 300), "L").save(train / "n01440764/grey.JPEG")
    photo(101, (256, 300), "CMYK").save(train / "n01443537/cmyk.JPEG")
    photo(102, (256, 300)).save(train / "n01484850/png.JPEG", format="PNG")
    return tmp_path
