"""Outputs and gates of parts of a network over batches of images, and sums over the processes that share the images."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geexp.backbones.anatomy import blocks, eval_mode, forward_hooks, slot
from geexp.operators import GatherExcite

Batches = Iterable[tuple[Tensor, Tensor]]  # images [N, C, H, W], normalised, and labels [N]
See = Callable[[str, Tensor], None]

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
    hooks: Callable[[Mapping[str, nn.Module], See], AbstractContextManager[None]] = forward_hooks,
) -> Tensor:
    """Run the network on all images and call ``see(name, output, labels)`` with the outputs of ``parts``.

    ``output`` is ``[n, …]`` with its ``labels`` ``[n]`` for n images of a batch, few enough for float64; later
    layers may overwrite it in place. With ``hooks=gate_hooks`` it is the gate of an operator.

    Returns:
        Images per class over all ranks, ``[num_classes]`` int64.

    Raises:
        ValueError: for a label out of range, and if no rank had images.
    """
    first = next(model.parameters())
    images_of = torch.zeros(num_classes, dtype=torch.int64, device=first.device)

    def in_parts(name: str, output: Tensor) -> None:
        n = max(1, _AT_ONCE // output[0].numel())
        for some, theirs in zip(output.split(n), labels.split(n), strict=True):
            see(name, some, theirs)

    with eval_mode(model), torch.no_grad(), hooks(parts, in_parts):
        for images, labels in batches:
            wrong = labels[(labels < 0) | (labels >= num_classes)]
            if len(wrong):
                raise ValueError(
                    f"label {int(wrong[0])}: with num_classes={num_classes} labels go from 0 to {num_classes - 1}"
                )
            labels = labels.to(first.device)
            images_of += torch.bincount(labels, minlength=num_classes)
            model(images.to(first))
    images_of = over_ranks(images_of)
    if not images_of.any():
        raise ValueError("there were no images in the batches")
    return images_of


def over_ranks(tensor: Tensor, operation: str = "SUM") -> Tensor:
    """The elementwise ``SUM``, ``MIN`` or ``MAX`` over the ranks; with one process the tensor itself."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    result = tensor.clone().contiguous()
    dist.all_reduce(result, getattr(dist.ReduceOp, operation))
    return result


def operators_of(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Module | None]:
    """What each block (of all, or of these) has in its slot for Gather-Excite."""
    every = blocks(model)
    return {name: getattr(every[name], slot(every[name])) for name in (every if names is None else names)}


def has_gate(operator: nn.Module | None) -> bool:
    """Whether ``gate_hooks`` supports the operator: ours, and a user's with an attribute ``channels`` and a method
    ``gate(x)``, which maps the operator's input [N, C, H, W] to the factors in 0 … 1, [N, C, h, w] on any grid."""
    # Of the class: in timm's SE modules ``gate`` is a submodule, the bare sigmoid.
    return hasattr(type(operator), "gate") and hasattr(operator, "channels")


def why_no_gate(operator: nn.Module | None) -> str:
    if operator is None or isinstance(operator, nn.Identity):
        return "holds no Gather-Excite"
    return (
        f"holds a {type(operator).__name__}, whose gates are unknown: it has no attribute channels and method gate(x) "
        "that returns its gate [N, C, h, w]"
    )


@contextmanager
def gate_hooks(operators: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """Call ``see(name, gate)`` in each forward pass: [N, C, h, w], of our operators in float32 or better."""
    with ExitStack() as hooks:
        for name, operator in operators.items():
            if isinstance(operator, GatherExcite):  # from the logits, so that nothing is gathered twice

                def from_logits(_module: nn.Module, _inputs: object, logits: Tensor, name: str = name) -> None:
                    see(name, logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid())

                handle = operator.excite.transform.register_forward_hook(from_logits)
            else:

                def from_input(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                    see(name, module.gate(inputs[0]))  # type: ignore[operator]

                handle = operator.register_forward_pre_hook(from_input)
            hooks.callback(handle.remove)
        yield
