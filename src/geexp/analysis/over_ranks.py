"""One result of several processes: every rank calls with a tensor of the same shape, on the device it computes on."""

import torch.distributed as dist
from torch import Tensor


def total(tensor: Tensor) -> Tensor:
    """The sum over the ranks; with one process the tensor itself."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def smallest(tensor: Tensor) -> Tensor:
    """The elementwise minimum over the ranks; with one process the tensor itself."""
    return _reduced(tensor, dist.ReduceOp.MIN)


def largest(tensor: Tensor) -> Tensor:
    """The elementwise maximum over the ranks; with one process the tensor itself."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    result = tensor.clone().contiguous()
    dist.all_reduce(result, operation)
    return result
