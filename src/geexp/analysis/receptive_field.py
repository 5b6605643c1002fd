"""The effective receptive field (Luo et al. 2016): which pixels a unit's value depends on, and how much.

Gather-Excite is to widen it: with a global extent a gate depends on the whole image.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from geexp.analysis import over_ranks
from geexp.analysis.observing import Batches, in_eval_mode
from geexp.backbones.anatomy import named_blocks


def effective_receptive_field(model: nn.Module, batches: Batches, *, block: str) -> np.ndarray:
    """The field of the unit in the middle (h//2, w//2) of a block's output, ``[H, W]`` float64, with the sum 1.

    It is the gradient of the unit, summed over the output's channels, with respect to the image: absolute values, mean
    over the image's channels and over the images. The network is run up to that block only, and its parameters get no
    gradients. Under DDP every rank gives its share of the images and gets the whole result.

    Raises:
        ValueError: for an unknown block, no images, images of several sizes, and a gradient that is zero everywhere or
            not finite.
    """
    (target,) = named_blocks(model, [block]).values()
    first = next(model.parameters())
    field: Tensor | None = None
    for images, _ in batches:
        gradient = _gradient(model, target, images.to(first))
        own = gradient.abs().sum((0, 1), dtype=torch.float64)
        if field is not None and own.shape != field.shape:
            raise ValueError(
                f"images of {_size(own)} and of {_size(field)}: the field is a mean over images of one size"
            )
        field = own if field is None else field + own

    # A rank without images has not seen their size.
    shape = over_ranks.largest(torch.tensor([0, 0] if field is None else field.shape, device=first.device)).tolist()
    if 0 in shape:
        raise ValueError("there were no images in the batches")
    if field is None:
        field = torch.zeros(shape, dtype=torch.float64, device=first.device)
    field = over_ranks.total(field)
    mass = field.sum()
    if not mass.isfinite():
        raise ValueError(f"block {block}: the gradient is not finite, the network has diverged")
    if mass == 0:
        raise ValueError(
            f"block {block}: the gradient is zero everywhere, the unit in its middle does not depend on the image. Its "
            "channels are dead (no ReLU before it lets anything through), or its weights are zero"
        )
    return (field / mass).cpu().numpy()


def area_holding(field: np.ndarray, share: float = 0.95) -> int:
    """How many pixels the smallest set has that holds this share of the field's mass (to within 1e-9 of it).

    Raises:
        ValueError: for a share that is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}: must be above 0 and at most 1")
    held = np.sort(field, axis=None)[::-1].cumsum()
    # The tolerance is for the sums' rounding: 95 pixels of a hundred equal ones do hold 0.95.
    return int(np.searchsorted(held, (share - 1e-9) * held[-1])) + 1


def side_holding(field: np.ndarray, share: float = 0.95) -> float:
    """The side, in pixels, of a square as large as that area: a width to compare networks and blocks by."""
    return math.sqrt(area_holding(field, share))


def _gradient(model: nn.Module, target: nn.Module, images: Tensor) -> Tensor:
    """Of the target's central unit, summed over its channels and the images, with respect to the images."""
    images = images.detach().requires_grad_()
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    handle = target.register_forward_hook(_stop)
    try:
        for parameter in wanted:  # what only their gradients would need is then not kept
            parameter.requires_grad_(False)
        with in_eval_mode(model), torch.enable_grad():
            output = _output(model, images)
            h, w = output.shape[2:]
            (gradient,) = torch.autograd.grad(output[:, :, h // 2, w // 2].sum(), images)
    finally:
        handle.remove()
        for parameter, requires in wanted.items():
            parameter.requires_grad_(requires)
    return gradient


class _Reached(Exception):  # noqa: N818  # no error: the way out of a forward pass
    def __init__(self, output: Tensor) -> None:
        self.output = output


def _stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
    raise _Reached(output)


def _output(model: nn.Module, images: Tensor) -> Tensor:
    try:
        model(images)
    except _Reached as reached:
        return reached.output
    raise RuntimeError("the network's forward pass did not run the block")


def _size(field: Tensor) -> str:
    return "x".join(map(str, field.shape))
