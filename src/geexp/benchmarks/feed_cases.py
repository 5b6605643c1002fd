"""Which feeds are compared, and what is demanded of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec

from geexp.benchmarks.rows import Target
from geexp.config.schema import AugmentationConfig, DataConfig, FeedConfig, RecipeConfig

# By feed and path: how many times less processor time an image takes than in the reference feed, in this process.
SPEED_TARGETS = {
    ("folder", "train"): 1.45,
    ("folder", "eval"): 1.7,
    ("folder, threads", "train"): 1.8,
    ("folder, workers", "train"): 1.6,
    ("pack jpeg", "train"): 3.0,
    ("pack raw", "train"): 8.0,
    ("resident", "small"): 15.0,
}

# By feed and path: the mean difference from the reference's pixels that is allowed, of 255 levels.
PIXEL_TARGETS = {
    ("torchvision", "decode"): 0.0,
    ("torchcodec", "decode"): 0.0,
    ("simplejpeg", "decode"): 0.0,
    ("folder", "train"): 0.05,
    ("folder", "eval"): 0.01,
    ("pack original", "train"): 0.05,
    ("pack original", "eval"): 0.01,
}

RECIPES = {
    "original": RecipeConfig("original"),
    "jpeg": RecipeConfig("jpeg", max_side=500, quality=90),
    "raw": RecipeConfig("raw", short_side=256),
}

# As conf/data/imagenet.yaml and conf/data/cifar10.yaml have them.
PHOTOS = DataConfig(
    name="imagenet",
    num_classes=1000,
    image_size=224,
    channels=3,
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
    default_feed="folder",
    evaluation_crop="centre",
    augmentation=AugmentationConfig(crop="resized", flip=True),
)
SMALL = DataConfig(
    name="cifar10",
    num_classes=10,
    image_size=32,
    channels=3,
    mean=[0.4914, 0.4822, 0.4465],
    std=[0.2470, 0.2435, 0.2616],
    default_feed="resident",
    augmentation=AugmentationConfig(crop="pad", pad=4, flip=True),
)


@dataclass(frozen=True)
class FeedCase:
    """A feed that is measured; ``recipe``: of the pack that it reads, ``normalised``: until the images are floats."""

    name: str
    feed: FeedConfig
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    normalised: bool = False


REFERENCE = FeedCase("reference", FeedConfig("reference", engine="workers", workers=0))
RESIDENT = FeedCase("resident", FeedConfig("resident"), normalised=True)


def photo_cases(path: str, workers: int) -> list[FeedCase]:
    """All feeds and engines for image files, the reference first; packs by threads. The other decoders in training."""
    others = [decoder for decoder in decoders() if decoder != "torchvision"] if path == "train" else []
    return [
        REFERENCE,
        FeedCase("reference, workers", FeedConfig("reference", engine="workers", workers=workers)),
        FeedCase("folder", FeedConfig("folder", workers=0)),
        *(FeedCase(f"folder, {decoder}", FeedConfig("folder", workers=0, decode=decoder)) for decoder in others),
        FeedCase("folder, normalised", FeedConfig("folder", workers=0), normalised=True),
        FeedCase("folder, threads", FeedConfig("folder", engine="threads", workers=workers)),
        FeedCase("folder, workers", FeedConfig("folder", engine="workers", workers=workers)),
        *(
            FeedCase(f"pack {name}", FeedConfig("pack", engine="threads", workers=workers), recipe)
            for name, recipe in RECIPES.items()
        ),
    ]


def feed_targets() -> list[Target]:
    """Of time as times less than the reference's, of pixels as they are."""
    speed, pixels = "times less processor time than the reference", "mean difference of pixels, of 255 levels"
    return [
        *(
            Target(speed, path, feed, "processor", REFERENCE.name, at_least=bound)
            for (feed, path), bound in SPEED_TARGETS.items()
        ),
        *(Target(pixels, path, feed, "pixels", at_most=bound) for (feed, path), bound in PIXEL_TARGETS.items()),
    ]


def decoders() -> Iterator[str]:
    """The installed ones."""
    return (name for name in ("torchvision", "torchcodec", "simplejpeg", "pil") if name == "pil" or find_spec(name))
