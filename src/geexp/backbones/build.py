"""``build_model``: a backbone by name, initialised as in the paper, with Gather-Excite in the chosen stages."""

from collections.abc import Sequence
from importlib import import_module

from torch import nn

from geexp.backbones.anatomy import blocks
from geexp.backbones.placement import add_gather_excite
from geexp.config.catalog import BACKBONES, VARIANTS
from geexp.operators.gather import Extent


def build_model(
    name: str,
    *,
    ge: str = "none",
    extent: Extent = "global",
    stages: Sequence[int] | None = None,
    pool: str = "avg",
    reduction: int = 16,
    implementation: str = "auto",
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int = 3,
    stride_in: str | None = None,
    init: str = "paper",
    bn_momentum: float = 0.05,
    zero_init_residual: bool = False,
) -> nn.Module:
    """Build a network: images ``[N, in_channels, H, W]`` → logits ``[N, num_classes]``.

    Args:
        name: ``resnet50``, ``resnet101``, ``resnet152``, ``shufflenet_g3``, ``wrn16_8``, or with pre-activation
            ``resnet110``, ``resnet164`` and the small ``resnet8``, ``resnet20``, ``resnet56``.
        ge: ``none``, ``theta_minus``, ``theta``, ``theta_plus`` or ``se``.
        extent, pool, reduction, implementation: of the operators, see :class:`~geexp.operators.GatherExcite`.
        stages: those that get GE, by the paper's numbers; None for all.
        num_classes, image_size: by default those of the network's home, ImageNet or CIFAR-10. Only a parametrised
            global gather is bound to ``image_size``.
        stride_in: ``1x1`` (default) or ``3x3``, ResNet-50/101/152 only.
        init: ``paper`` (He normal by fan-in; classifier N(0, 0.01²), zero bias) or ``torch`` (the layers' own default).
            The operators initialise themselves, always as in the paper.
        bn_momentum: of every BN; 0.05 is the paper's moving average factor of 0.95.
        zero_init_residual: start every block with a sum as its identity. Off in the paper. GE's gates start near
            0.5 and halve the residual branches; with both, the branches start at zero and grow half as fast.

    Raises:
        ValueError: for an unknown name or value; the message lists what is allowed.
    """
    if name not in BACKBONES:
        raise ValueError(f"model {name!r}: allowed are {', '.join(BACKBONES)}")
    if ge not in ("none", *VARIANTS):
        raise ValueError(f"ge={ge!r}: allowed are none, {', '.join(VARIANTS)}")
    if init not in ("paper", "torch"):
        raise ValueError(f"init={init!r}: allowed are 'paper' and 'torch'")
    facts = BACKBONES[name]
    constructor = getattr(import_module(facts.module), name)
    options = {} if stride_in is None else {"stride_in": stride_in}
    if options and facts.module != "geexp.backbones.resnet":
        raise ValueError(f"stride_in={stride_in!r}: {name} has no such choice, only resnet50, resnet101 and resnet152")
    model = constructor(
        num_classes=facts.num_classes if num_classes is None else num_classes, in_channels=in_channels, **options
    )
    _initialise(model, init)
    if zero_init_residual:
        for block in blocks(model).values():
            block.zero_init_last()  # type: ignore[operator]
    if ge != "none":
        add_gather_excite(
            model,
            variant=ge,
            extent=extent,
            stages=stages,
            image_size=facts.image_size if image_size is None else image_size,
            pool=pool,
            reduction=reduction,
            implementation=implementation,
        )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    return model


def _initialise(model: nn.Module, init: str) -> None:
    for module in model.modules():
        if init == "torch" and isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
