"""What there is to choose from, with the facts that are needed before torch is imported."""

from dataclasses import dataclass

VARIANTS = ("theta_minus", "theta", "theta_plus", "se")


@dataclass(frozen=True)
class BackboneFacts:
    """Where a backbone is defined (a function of its own name in ``module``), and its home setting.

    ``stages`` are numbered as in the papers: conv2_x is stage 2. ``image_size`` and ``num_classes`` are those of the
    data set that the network was designed for, in which its complexity is counted.
    """

    module: str
    stages: tuple[int, ...]
    image_size: int
    num_classes: int


_IMAGENET = {"image_size": 224, "num_classes": 1000}
_CIFAR = {"stages": (2, 3, 4), "image_size": 32, "num_classes": 10}

BACKBONES: dict[str, BackboneFacts] = {
    **{
        name: BackboneFacts("geexp.backbones.resnet", stages=(2, 3, 4, 5), **_IMAGENET)
        for name in ("resnet50", "resnet101", "resnet152")
    },
    "shufflenet_g3": BackboneFacts("geexp.backbones.shufflenet", stages=(2, 3, 4), **_IMAGENET),
    **{
        name: BackboneFacts("geexp.backbones.preact_resnet", **_CIFAR)  # type: ignore[arg-type]
        for name in ("resnet8", "resnet20", "resnet56", "resnet110", "resnet164", "wrn16_8")
    },
}

# Data sets, and whether they are folders of image files (the others are arrays of small images).
DATASETS: dict[str, bool] = {
    "fashion_mnist_mini": False,
    "fashion_mnist": False,
    "cifar10": False,
    "cifar100": False,
    "imagenet": True,
}
