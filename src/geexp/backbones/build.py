"""``build_model``: a backbone by name, initialised as in the paper, with Gather-Excite in the chosen stages."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from geexp.backbones.anatomy import blocks
from geexp.backbones.placement import add_gather_excite
from geexp.operators.gather import Extent
from geexp.registry import locate, options


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
        init: ``paper`` (He normal by fan-in; classifier N(0, 0.01²), zero bias), ``torch`` (the layers' own default)
            or ``own`` (as the network's constructor leaves it). Operators always initialise themselves as in the paper.
        bn_momentum: of every BN; 0.05 is the paper's moving average factor of 0.95.
        zero_init_residual: start every block with a sum as its identity. Off in the paper. GE's gates start near
            0.5 and halve the residual branches; with both, the branches start at zero and grow half as fast.

    Raises:
        ValueError: for an unknown name or value; the message lists what is allowed.
    """
    networks = {key: entry for key, entry in options("model").items() if entry["name"] == key}
    if name not in networks:
        raise ValueError(f"model {name!r}: allowed are {', '.join(networks)}")
    if ge not in options("ge"):
        raise ValueError(f"ge={ge!r}: allowed are {', '.join(options('ge'))}")
    entry = networks[name]
    if stride_in is not None and "stride_in" not in entry:
        having = [key for key, other in networks.items() if "stride_in" in other]
        raise ValueError(f"stride_in={stride_in!r}: {name} has no such choice, only {', '.join(having)}")
    operator = None
    if ge != "none":
        operator = partial(
            locate(options("ge")[ge]["_target_"]),
            variant=ge,
            extent=extent,
            pool=pool,
            reduction=reduction,
            implementation=implementation,
        )
    return assemble(
        partial(locate(entry["_target_"]), **({} if stride_in is None else {"stride_in": stride_in})),
        operator,
        stages=stages,
        num_classes=entry["home_classes"] if num_classes is None else num_classes,
        image_size=entry["home_size"] if image_size is None else image_size,
        in_channels=in_channels,
        init=init,
        bn_momentum=bn_momentum,
        zero_init_residual=zero_init_residual,
    )


def assemble(
    constructor: Callable[..., nn.Module],
    operator: Callable[..., nn.Module] | None,
    *,
    stages: Sequence[int] | None,
    num_classes: int,
    image_size: int | tuple[int, int],
    in_channels: int,
    init: str,
    bn_momentum: float,
    zero_init_residual: bool,
) -> nn.Module:
    """A network from its constructor, with what ``operator`` makes in the blocks of ``stages``; see ``build_model``.

    Args:
        constructor: called with ``num_classes`` and ``in_channels``.
        operator: called with the channels and the ``size`` of a block's feature map; None for the plain backbone.

    Raises:
        ValueError: for an unknown ``init``, and what constructor or operator refuse.
    """
    if init not in ("paper", "torch", "own"):
        raise ValueError(f"init={init!r}: allowed are 'paper', 'torch' and 'own'")
    model = constructor(num_classes=num_classes, in_channels=in_channels)
    _initialise(model, init)
    if zero_init_residual:
        for block in blocks(model).values():
            block.zero_init_last()  # type: ignore[operator]
    if operator is not None:
        add_gather_excite(model, operator=operator, stages=stages, image_size=image_size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    return model


def _initialise(model: nn.Module, init: str) -> None:
    for module in model.modules():
        layer: Any = module
        if init == "torch" and isinstance(module, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()
        elif init == "paper" and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        elif init == "paper" and isinstance(module, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
