"""How an operator is computed, which changes its speed and memory and, up to rounding, nothing else."""

import torch
from torch import nn

IMPLEMENTATIONS = ("auto", "reference", "fused")


def check_implementation(implementation: object) -> str:
    """Return ``implementation`` if it is one of ``IMPLEMENTATIONS``.

    ``reference`` is the plain composition of PyTorch's operations, ``fused`` our own wherever they are valid, and
    ``auto`` whichever of the two was measured to be the faster in a case.

    Raises:
        ValueError: for anything else; the message lists what is allowed.
    """
    if isinstance(implementation, str) and implementation in IMPLEMENTATIONS:
        return implementation
    raise ValueError(f"implementation={implementation!r}: allowed are {', '.join(map(repr, IMPLEMENTATIONS))}")


def is_observed(module: nn.Module) -> bool:
    """Whether a hook wants to see this module, or one inside it, at work: then it has to work as a module."""
    return _observed_globally() or any(_has_hooks(part) for part in module.modules())


def _observed_globally() -> bool:
    shared = nn.modules.module
    return bool(
        shared._global_forward_hooks
        or shared._global_forward_pre_hooks
        or shared._global_backward_hooks
        or shared._global_backward_pre_hooks
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_traced(x: torch.Tensor) -> bool:
    """Whether ``x`` stands for a computation that is being recorded, exported or transformed, not for values."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or type(x) not in (torch.Tensor, nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or x.device.type not in ("cpu", "cuda")
    )
