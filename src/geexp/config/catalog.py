"""What there is to choose from, with the facts that are needed before torch is imported."""

from dataclasses import dataclass

VARIANTS = ("theta_minus", "theta", "theta_plus", "se")
IMPLEMENTATIONS = ("auto", "reference", "fused")


@dataclass(frozen=True)
class BackboneFacts:
    """Where a backbone is defined (a function of its own name in ``module``), and its home setting.

    ``stages`` are numbered as in the papers: conv2_x is stage 2. ``image_size`` and ``num_classes`` are those of the
    data set that the network was designed for, in which its complexity is counted: ``gmacs`` for one image, without GE,
    ``last_gmacs`` of these in its last stage.
    """

    module: str
    stages: tuple[int, ...]
    image_size: int
    num_classes: int
    gmacs: float
    last_gmacs: float | None = None


_IMAGENET = {"image_size": 224, "num_classes": 1000}
_CIFAR = {"stages": (2, 3, 4), "image_size": 32, "num_classes": 10}

BACKBONES: dict[str, BackboneFacts] = {
    **{
        name: BackboneFacts("geexp.backbones.resnet", stages=(2, 3, 4, 5), gmacs=gmacs, last_gmacs=0.732, **_IMAGENET)
        for name, gmacs in (("resnet50", 3.86), ("resnet101", 7.57), ("resnet152", 11.28))
    },
    "shufflenet_g3": BackboneFacts(
        "geexp.backbones.shufflenet", stages=(2, 3, 4), gmacs=0.1375, last_gmacs=0.0324, **_IMAGENET
    ),
    "resnet10_slim": BackboneFacts(
        "geexp.backbones.small_resnet", stages=(2, 3, 4, 5), gmacs=0.0727, last_gmacs=0.0112, **_IMAGENET
    ),
    **{
        name: BackboneFacts("geexp.backbones.preact_resnet", gmacs=gmacs, **_CIFAR)  # type: ignore[arg-type]
        for name, gmacs in (
            ("resnet8", 0.0125),
            ("resnet20", 0.0408),
            ("resnet56", 0.126),
            ("resnet110", 0.253),
            ("resnet164", 0.2445),
            ("wrn16_8", 1.55),
        )
    },
}

# Detection sets: their splits for training and evaluation.
DETECTION_SETS: dict[str, tuple[str, str]] = {
    "coco2014": ("train2014", "val2014"),
    "coco2017": ("train2017", "val2017"),
    "fashion_coco_mini": ("train", "val"),
}

# Data sets, and whether they are folders of image files (the others are arrays of small images).
DATASETS: dict[str, bool] = {
    "fashion_mnist_mini": False,
    "fashion_mnist": False,
    "cifar10": False,
    "cifar100": False,
    "imagenet": True,
    **dict.fromkeys(DETECTION_SETS, True),
}

# How many images an epoch of training has.
TRAINING_IMAGES: dict[str, int] = {
    "fashion_mnist_mini": 10_000,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "imagenet": 1_281_167,
    "coco2014": 82_081,
    "coco2017": 117_266,
    "fashion_coco_mini": 800,
}
