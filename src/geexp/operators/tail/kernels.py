"""The tail of a residual block by Triton kernels: relu(shortcut + GE(BN(branch)))."""

import torch
from torch import Tensor, nn

from geexp.operators.gather import DepthwiseProduct
from geexp.operators.gather_excite import GatherExcite
from geexp.operators.tail.compiled import takes_tail
from geexp.operators.tail.finite_extent import WindowTail
from geexp.operators.tail.global_extent import GlobalTail
from geexp.operators.torch_private import has_tensor_hooks


def takes_kernels(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> bool:
    """Whether ``gather_excite_tail`` supports these inputs, with the same result as the plain composition."""
    if not operator.gathers_linearly or not takes_tail(norm, branch, shortcut):
        return False
    if has_tensor_hooks(operator):  # backward would call them twice, within the tail and behind it
        return False
    first = next(iter(operator.gather.children()), None)
    if isinstance(first, nn.Conv2d) and branch.shape[1] != first.in_channels:
        return False  # which gets the error message of the plain composition, as a map of another size does
    return not isinstance(first, DepthwiseProduct) or branch.shape[2:] == first.kernel_size


def gather_excite_tail(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> Tensor:
    """``relu(shortcut + operator(norm(branch)))``; updates running statistics as the modules do.

    Args:
        operator: averaging or parametrised.
        norm: with weight and bias, in training or eval mode; see ``takes_kernels``.
        branch, shortcut: ``[N, C, H, W]`` of one dtype, both contiguous or both channels_last.

    Returns:
        ``[N, C, H, W]``, in the branch's memory format. Backward saves the branch and this result, and for a finite
        extent two gathered maps. Double backward works, at the cost of the plain composition.
    """
    function = GlobalTail if operator.is_global else WindowTail
    with torch.cuda.device_of(branch):
        return function.apply(branch, shortcut, norm.weight, norm.bias, norm, operator, *operator.parameters())
