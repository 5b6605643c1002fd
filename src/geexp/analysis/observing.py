"""Outputs of parts of a network over batches of images, and sums over the processes that share the images."""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geexp.backbones.anatomy import eval_mode, forward_hooks

Batches = Iterable[tuple[Tensor, Tensor]]  # images [N, C, H, W], normalised, and labels [N]

# How many values of an output are passed on at once: float64 copies of them take some ten megabytes, whatever the batch
# size, and stay in the processor's cache.
_AT_ONCE = 1 << 19


def observe(
    model: nn.Module,
    batches: Batches,
    parts: Mapping[str, nn.Module],
    see: Callable[[str, Tensor, Tensor], None],
    *,
    num_classes: int,
) -> Tensor:
    """Run the network on all images and call ``see(name, output, labels)`` with the outputs of ``parts``.

    ``output`` is ``[n, …]`` with its ``labels`` ``[n]`` for n images of a batch, few enough for float64; later
    layers may overwrite it in place.

    Returns:
        Images per class over all ranks, ``[num_classes]`` int64.

    Raises:
        ValueError: for a label out of range, and if no rank had images.
    """
    first = next(model.parameters())
    images_of = torch.zeros(num_classes, dtype=torch.int64, device=first.device)
    with eval_mode(model), torch.no_grad():
        for images, labels in batches:
            _check(labels, num_classes)
            labels = labels.to(first.device)
            images_of += torch.bincount(labels, minlength=num_classes)

            def in_parts(name: str, output: Tensor, labels: Tensor = labels) -> None:
                n = max(1, _AT_ONCE // output[0].numel())
                for some, theirs in zip(output.split(n), labels.split(n), strict=True):
                    see(name, some, theirs)

            with forward_hooks(parts, in_parts):
                model(images.to(first))
    images_of = total(images_of)
    if not images_of.any():
        raise ValueError("there were no images in the batches")
    return images_of


def total(tensor: Tensor) -> Tensor:
    """The sum over the ranks, each with a tensor of the same shape; with one process the tensor itself."""
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


def _check(labels: Tensor, num_classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"label {int(wrong[0])}: with num_classes={num_classes} labels go from 0 to {num_classes - 1}")
