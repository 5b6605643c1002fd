"""All private torch APIs that geexp's operators use."""

import torch
from torch import Tensor, nn
from torch.utils import _triton

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook is registered on the module, a submodule or globally; then no module call may be skipped."""
    return any(getattr(nn.modules.module, name) for name in _GLOBAL_HOOKS) or any(
        getattr(child, name) for child in module.modules() for name in _HOOKS
    )


def has_tensor_hooks(module: nn.Module) -> bool:
    """Whether a hook for its gradient is registered on a parameter."""
    return any(parameter._backward_hooks for parameter in module.parameters())


def is_traced(x: Tensor) -> bool:
    """Whether ``x`` is part of a graph being compiled, exported, traced or transformed, or has no real storage."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or type(x) not in (Tensor, nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or x.device.type not in ("cpu", "cuda")
    )


def unaliased(x: Tensor) -> Tensor:
    """``x`` as a tensor that autograd does not treat as a view, without a copy.

    If a Function returns a view, autograd rejects an in-place sum with the result.
    """
    return torch.ops.aten._unsafe_view(x, x.shape)


def upsample_nearest_backward(grad: Tensor, h: int, w: int) -> Tensor:
    """The gradient of a nearest resizing by whole factors: ``[N, C, H, W]`` → ``[N, C, h, w]``."""
    return torch.ops.aten.upsample_nearest2d_backward(grad, grad.shape[2:], [*grad.shape[:2], h, w])


def can_compile_for_gpu() -> bool:
    """Whether Triton is installed and supports this GPU."""
    return _triton.has_triton()
