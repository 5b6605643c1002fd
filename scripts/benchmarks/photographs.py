"""Create a folder in ImageNet's layout from real photographs, for testing feeds without ImageNet.

    python scripts/benchmarks/photographs.py <folder> [--classes 1000] [--train 3000] [--val 1000] [--seed 0]

Every image is a window of one of the photographs below at a size common in ImageNet, possibly mirrored, with slightly
changed contrast and colours and with sensor noise, so that file size and decoding time are those of a photograph. The
classes are random and cannot be learned; their names have WordNet's form (``n01234567``) but are invented.

The photographs come with installed packages; all are in the public domain or under CC0 (see skimage/data/_fetchers.py):

    scikit-image  astronaut.png          NASA, public domain
                  brick.png              CC0Textures, CC0
                  camera.png             Lav Varshney, CC0
                  chelsea.png            Stefan van der Walt, CC0
                  coffee.png             Rachel Michetti, CC0
                  grass.png              linolafett, CC0
                  gravel.png             CC0Textures, CC0
                  hubble_deep_field.jpg  NASA, public domain
                  retina.jpg             Mikael Häggström, CC0
                  rocket.jpg             SpaceX, public domain
    matplotlib    grace_hopper.jpg       James S. Davis, U.S. Navy, public domain
"""

import argparse
import io
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from geexp.config.errors import ConfigError, UserError
from geexp.data.parallel import meter

_PHOTOGRAPHS = {
    ("skimage", "data"): (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "retina.jpg",
        "rocket.jpg",
    ),
    ("matplotlib", "mpl-data/sample_data"): ("grace_hopper.jpg",),
}

# (width, height): percentage of the images, approximately as in ImageNet.
_SIZES = {
    (500, 375): 42,
    (375, 500): 15,
    (500, 333): 12,
    (333, 500): 6,
    (500, 400): 4,
    (500, 500): 4,
    (400, 300): 4,
    (1024, 768): 4,
    (1600, 1200): 3,
    (640, 480): 2,
    (320, 240): 2,
    (200, 150): 1,
    (96, 128): 1,
}

_EXIF_ORIENTATION, _TURN_RIGHT = 0x0112, 6


def make_photo_folder(
    folder: Path, *, classes: int = 1000, train: int = 3000, val: int = 1000, seed: int = 0, workers: int | None = None
) -> int:
    """Write ``train`` images to ``<folder>/train/<wnid>/<wnid>_<n>.JPEG`` and ``val`` to ``<folder>/val/<wnid>/``.

    The files depend only on the seed and the numbers of classes and images (and on the versions of Pillow and NumPy).

    Args:
        workers: threads; None: one per processor.

    Returns:
        The total size in bytes.

    Raises:
        ConfigError: if the folder is not empty, a class would have no image, or scikit-image is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not empty; choose a new folder, or delete it.")
    if not 1 <= classes <= min(train, val):
        raise ConfigError(f"classes={classes}: must be between 1 and the smaller of train={train} and val={val}.")
    photographs = read_photographs()
    names = _class_names(classes, seed)
    paths = {}
    for split, images in (("train", train), ("val", val)):
        for number, name in zip(range(images), cycle(names), strict=False):
            file = f"{name}_{number // classes + 1}" if split == "train" else f"val_{number + 1:08d}"
            paths[split, number] = folder / split / name / f"{file}.JPEG"
    for parent in {path.parent for path in paths.values()}:
        parent.mkdir(parents=True)

    def make(split: str, number: int) -> int:
        rng = np.random.default_rng([seed, number, split == "val"])
        return paths[split, number].write_bytes(encoded(photograph(photographs, rng), _kind(number), rng))

    # Threads suffice: Pillow and NumPy release the interpreter's lock.
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, meter(f"making {folder}", len(paths)) as advance:
        sizes = pool.map(make, *zip(*paths, strict=True))
        total = 0
        for size in sizes:
            advance(1, size)
            total += size
    return total


def read_photographs() -> list[Image.Image]:
    """The photographs in RGB.

    Raises:
        ConfigError: if scikit-image is not installed.
    """
    photographs = []
    for (package, folder), files in _PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"{package}, which contains the photographs, is not installed: pip install scikit-image matplotlib"
            )
        for file in files:
            with Image.open(Path(spec.origin).parent / folder / file) as image:
                photographs.append(image.convert("RGB"))
    return photographs


def photograph(photographs: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    """A random window of a photograph at one of ImageNet's sizes, with changed colours and noise."""
    source = photographs[rng.integers(len(photographs))]
    shares = np.array([*_SIZES.values()])
    width, height = [*_SIZES][rng.choice(len(shares), p=shares / shares.sum())]
    window = min(source.width / width, source.height / height) * rng.uniform(0.5, 1)
    left, top = rng.uniform(0, source.width - window * width), rng.uniform(0, source.height - window * height)
    box = (left, top, left + window * width, top + window * height)
    image = source.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    pixels = np.asarray(image, dtype=np.float32)
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.9, 1.1, 3)
    pixels = (pixels - 128) * gain.astype(np.float32) + np.float32(128 + rng.uniform(-15, 15))
    # Without noise, upscaled windows would be smooth and cheap to decode.
    pixels += np.float32(rng.uniform(3, 9)) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, rng: np.random.Generator) -> bytes:
    """A JPEG file with one of ImageNet's qualities, or one of its unusual file types."""
    quality = int(rng.choice([75, 85, 90, 95, 96], p=[0.1, 0.15, 0.2, 0.35, 0.2]))
    options = {"quality": quality, "subsampling": "4:2:0" if rng.random() < 0.7 else "4:4:4"}
    content = io.BytesIO()
    if kind == "png":
        image.save(content, "PNG", compress_level=1)
    elif kind == "cmyk":
        image.convert("CMYK").save(content, "JPEG", quality=quality)
    elif kind == "grey":
        image.convert("L").save(content, "JPEG", quality=quality)
    elif kind == "turned":
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = _TURN_RIGHT
        image.transpose(Image.Transpose.ROTATE_90).save(content, "JPEG", exif=exif, **options)
    else:
        image.save(content, "JPEG", progressive=kind == "progressive", **options)
    return content.getvalue()


def _kind(number: int) -> str:
    """The file type of an image: a PNG named .JPEG and a CMYK file per split, some grey, rotated or progressive."""
    once, often = {2: "png", 5: "cmyk"}, {8: "grey", 11: "turned", 14: "progressive", 46: "progressive"}
    return once.get(number) or often.get(number % 64) or "plain"


def _class_names(classes: int, seed: int) -> list[str]:
    ids = np.random.default_rng(seed).choice(13_900_000, classes, replace=False) + 1_400_000
    return [f"n{id_:08d}" for id_ in sorted(ids.tolist())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--train", type=int, default=3000, help="images of all classes together")
    parser.add_argument("--val", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        size = make_photo_folder(**vars(options))
    except UserError as error:
        parser.error(str(error))
    print(f"{options.folder}: {options.train} + {options.val} images, {size / 1e6:,.0f} MB")
    data = f"data=imagenet data.root={options.folder} data.num_classes={options.classes}"
    print(f"train on it: python -m geexp.train {data}")


if __name__ == "__main__":
    main()
