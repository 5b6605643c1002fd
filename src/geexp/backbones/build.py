"""Networks with Gather-Excite: ``build_model`` builds one by name, ``add_gather_excite`` extends an existing one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from geexp.backbones.anatomy import blocks, blocks_by_stage, slot, slot_shapes
from geexp.backbones.fused_tail import fuse_tail
from geexp.operators import GatherExcite
from geexp.operators.gather import Extent
from geexp.registry import locate, options


def build_model(
    name: str,
    *,
    ge: str = "none",
    extent: Extent = "global",
    stages: Sequence[int] | None = None,
    pool: str = "avg",
    border: str = "real",
    reduction: int = 16,
    implementation: str = "auto",
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int = 3,
    stride_in: str | None = None,
    shortcut: str | None = None,
    init: str = "paper",
    bn_momentum: float = 0.05,
    zero_init_residual: bool = False,
) -> nn.Module:
    """Build a network: images ``[N, in_channels, H, W]`` → logits ``[N, num_classes]``.

    Args:
        name: ``resnet50``, ``resnet101``, ``resnet152``, ``shufflenet_g3``, ``wrn16_8``, or one of the pre-activation
            networks ``resnet110``, ``resnet164`` and the small ``resnet8``, ``resnet20``, ``resnet56``.
        ge: ``none``, ``theta_minus``, ``theta``, ``theta_plus`` or ``se``.
        extent, pool, border, reduction, implementation: arguments of :class:`~geexp.operators.GatherExcite`.
        stages: the stages with GE, by the paper's numbers; None for all.
        num_classes, image_size: default to those of the network's usual data set, ImageNet or CIFAR-10. Only a
            parametrised global gather depends on ``image_size``.
        stride_in: the convolution with the stride, ``1x1`` (default) or ``3x3``; ResNet-50/101/152 only.
        shortcut: where a CIFAR network changes its width, ``A`` (padded with zeros) or ``B`` (a 1x1 convolution);
            defaults to the baseline's own, B for ResNet-164 and WRN, A for the others.
        init: ``paper`` (He normal by fan-in; classifier N(0, 0.01²), zero bias), ``torch`` (the layers' defaults) or
            ``own`` (the constructor's). GE operators are always initialised as in the paper.
        bn_momentum: momentum of every BN; 0.05 is the paper's moving average factor of 0.95.
        zero_init_residual: initialise residual branches to zero (not in the paper). The gates of GE-θ⁻ and SE start
            near 0.5 and halve the residual branches; those of GE-θ start as σ(N(0, 1)), because of its BN.

    Raises:
        ValueError: for an unknown name or value; the message lists the allowed ones.
    """
    networks = {key: entry for key, entry in options("model").items() if entry["name"] == key}
    if name not in networks:
        raise ValueError(f"model {name!r}: allowed are {', '.join(networks)}")
    if ge not in options("ge"):
        raise ValueError(f"ge={ge!r}: allowed are {', '.join(options('ge'))}")
    entry = networks[name]
    choices = {key: value for key, value in (("stride_in", stride_in), ("shortcut", shortcut)) if value is not None}
    for key, value in choices.items():
        if key not in entry:
            having = [other for other, options_ in networks.items() if key in options_]
            raise ValueError(f"{key}={value!r}: not an option of {name}, only of {', '.join(having)}")
    operator = None
    if ge != "none":
        operator = partial(
            locate(options("ge")[ge]["_target_"]),
            variant=ge,
            extent=extent,
            pool=pool,
            border=border,
            reduction=reduction,
            implementation=implementation,
        )
    return assemble(
        partial(locate(entry["_target_"]), **choices),
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
    """Build a network from its constructor, with GE in the blocks of ``stages``; see ``build_model``.

    Args:
        constructor: called with ``num_classes`` and ``in_channels``; ``anatomy`` documents the network's interface.
        operator: as in ``add_gather_excite``; None for the plain backbone.

    Raises:
        ValueError: for an unknown ``init`` and a network without stages or slots; also raised by the constructors of
            network and operator for invalid arguments.
    """
    if init not in ("paper", "torch", "own"):
        raise ValueError(f"init={init!r}: allowed are 'paper', 'torch' and 'own'")
    model = constructor(num_classes=num_classes, in_channels=in_channels)
    _initialise(model, init)
    if zero_init_residual:
        for name, block in blocks(model).items():
            if not hasattr(block, "zero_init_last"):
                raise ValueError(
                    f"zero_init_residual=true: block {name}, a {type(block).__name__}, has no zero_init_last()"
                )
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


def add_gather_excite(
    model: nn.Module,
    *,
    variant: str | None = None,
    operator: Callable[..., nn.Module] | None = None,
    extent: Extent = "global",
    stages: Sequence[int] | None = None,
    image_size: int | tuple[int, int] | None = None,
    pool: str = "avg",
    border: str = "real",
    reduction: int = 16,
    implementation: str = "auto",
) -> nn.Module:
    """Add a :class:`~geexp.operators.GatherExcite` to every block of the given stages, and return the model.

    The operator goes into the residual branch, immediately before the sum with the identity branch. Supported are
    geexp's backbones and timm networks with empty ``se`` slots (``resnet50``, ``resnext50_32x4d``, ``wide_resnet50_2``,
    ``resnet50d``, ``res2net50_26w_4s``, …). Further calls can add other operators to other stages.

    Args:
        model: the network; changed in place.
        variant: ``theta_minus``, ``theta``, ``theta_plus`` or ``se``. Give either this or ``operator``.
        operator: a function that returns the module for one block, called with the block's channels C and ``size``, the
            (H, W) of its feature map. The module maps ``[N, C, H, W]`` to the same shape.
        extent, pool, border, reduction, implementation: arguments of ``GatherExcite``. Except with ``reference``,
            timm's ResNet blocks compute BN, GE of global extent, the sum and the ReLU as one operator in training, on a
            CPU only GE-θ⁻ by average. ``auto`` does so if it pays off: on a CPU if the network is large enough for the
            compilation, about 20 s; on a GPU if it is faster there, which is measured once for each shape.
        stages: the paper's numbers, 2 to 5; None for all.
        image_size: of the input, (H, W) or one number; defaults to the size in a timm network's configuration, else
            224. It sets the kernel size of a parametrised global gather; all other variants accept any size.

    Raises:
        ValueError: for an unknown stage, an occupied slot, an operator that changes the shape, or invalid arguments of
            ``GatherExcite``.
    """
    if (variant is None) == (operator is None):
        raise ValueError(f"variant={variant!r}, operator={operator!r}: give one of the two")
    make = operator or partial(
        GatherExcite,
        variant=str(variant),
        extent=extent,
        pool=pool,
        border=border,
        reduction=reduction,
        implementation=implementation,
    )
    available = blocks_by_stage(model)
    wanted = list(available if stages is None else stages)
    if not wanted:
        raise ValueError("stages=[]: no stage would have an operator; None means all stages")
    if not available.keys() >= set(wanted):
        raise ValueError(f"stages={wanted}: this network has stages {', '.join(map(str, available))}")
    chosen = {name: block for stage in available if stage in wanted for name, block in available[stage].items()}
    for name, block in chosen.items():
        occupant = getattr(block, slot(block))
        if occupant is not None and not isinstance(occupant, nn.Identity):
            raise ValueError(f"block {name} already has a {type(occupant).__name__} in the slot for Gather-Excite")

    channels = next(parameter.shape[1] for parameter in model.parameters() if parameter.dim() == 4)
    if image_size is None:
        image_size = tuple(getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[1:])
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    shapes = slot_shapes(model, (channels, height, width))
    reference = next(model.parameters())
    for name, block in chosen.items():
        _, C, H, W = shapes[name]
        made = make(C, size=(H, W))
        if not isinstance(made, nn.Module):
            raise ValueError(f"ge._target_: returned a {type(made).__name__} for block {name}, not a torch.nn.Module")
        made = made.to(reference.device, reference.dtype)
        if not isinstance(made, GatherExcite):
            _check_shape(made.eval(), torch.zeros(2, C, H, W, device=reference.device, dtype=reference.dtype), name)
        setattr(block, slot(block), made.train(model.training))
        if isinstance(made, GatherExcite) and made.gathers_linearly and made.implementation != "reference":
            fuse_tail(block)
    return model


def _check_shape(operator: nn.Module, x: torch.Tensor, block: str) -> None:
    with torch.no_grad():
        shape = tuple(getattr(operator(x), "shape", ()))
    if shape != tuple(x.shape):
        raise ValueError(
            f"ge._target_: {type(operator).__name__} in block {block} maps {list(x.shape)} to {list(shape)}: "
            "it must keep the shape [N, C, H, W]"
        )
