"""Placement: which blocks of a network get a Gather-Excite operator (paper, Table 1)."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from geexp.backbones.anatomy import blocks, slot, slot_shapes, stages
from geexp.backbones.fused_tail import fuse_tail
from geexp.operators import GatherExcite
from geexp.operators.gather import Extent


def add_gather_excite(
    model: nn.Module,
    *,
    variant: str | None = None,
    operator: Callable[..., nn.Module] | None = None,
    extent: Extent = "global",
    stages: Sequence[int] | None = None,
    image_size: int | tuple[int, int] | None = None,
    pool: str = "avg",
    reduction: int = 16,
    implementation: str = "auto",
) -> nn.Module:
    """Put a :class:`~geexp.operators.GatherExcite` into every block of the given stages, and return the model.

    It goes into the residual branch immediately before the sum with the identity branch. The model is one of ours or a
    timm network whose blocks have the slot ``se`` free (``resnet50``, ``resnext50_32x4d``, ``wide_resnet50_2``,
    ``resnet50d``, ``res2net50_26w_4s``, …). Call it again for other stages with another operator.

    Args:
        model: the network; changed in place.
        variant: ``theta_minus``, ``theta``, ``theta_plus`` or ``se``; or
        operator: what makes the operator of a block, called with its channels and ``size``, (H, W) of its feature map;
            it maps ``[N, C, H, W]`` to the same shape.
        extent, pool, reduction, implementation: as for ``GatherExcite``. But for ``reference``, timm's ResNet
            blocks compute BN, GE-θ⁻ by average, the sum and the ReLU as one operator in training; ``auto`` does so
            where it is no slower, for the global extent where a compilation of some 20 s will have paid.
        stages: the paper's numbers, 2 to 5; None for all.
        image_size: of the input, (H, W) or one number; by default the size that a timm network is configured for,
            else 224. It decides the kernel size of a parametrised global gather; the other forms take any size.

    Raises:
        ValueError: for a stage that the network does not have, a slot that is taken already, and what
            ``GatherExcite`` refuses.
    """
    if (variant is None) == (operator is None):
        raise ValueError(f"variant={variant!r}, operator={operator!r}: give one of the two")
    make = operator or partial(
        GatherExcite,
        variant=str(variant),
        extent=extent,
        pool=pool,
        reduction=reduction,
        implementation=implementation,
    )
    chosen = _checked_stages(model, stages)
    channels = next(parameter.shape[1] for parameter in model.parameters() if parameter.dim() == 4)
    if image_size is None:
        image_size = tuple(getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[1:])
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    chosen_blocks = {name: block for name, block in blocks(model).items() if int(name[4]) in chosen}
    for name, block in chosen_blocks.items():
        occupant = getattr(block, slot(block))
        if occupant is not None and not isinstance(occupant, nn.Identity):
            raise ValueError(f"block {name} already holds a {type(occupant).__name__} where Gather-Excite goes")

    shapes = slot_shapes(model, (channels, height, width))
    reference = next(model.parameters())
    for name, block in chosen_blocks.items():
        _, C, H, W = shapes[name]
        made = make(C, size=(H, W))
        setattr(block, slot(block), made.to(reference.device, reference.dtype).train(model.training))
        if isinstance(made, GatherExcite) and made.averages and made.implementation != "reference":
            fuse_tail(block)
    return model


def _checked_stages(model: nn.Module, wanted: Sequence[int] | None) -> set[int]:
    available = tuple(stages(model))
    if wanted is not None and not wanted:
        raise ValueError("stages=[]: no stage would get an operator; None means all of them")
    for stage in wanted or ():
        if stage not in available:
            raise ValueError(f"stages={list(wanted or ())}: this network has stages {', '.join(map(str, available))}")
    return set(available if wanted is None else wanted)
