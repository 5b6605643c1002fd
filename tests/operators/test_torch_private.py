"""torch still has the private names that the operators use, and they mean the same."""

import pytest
import torch
from torch import nn

from geexp.operators import torch_private

TORCH = f"torch {torch.__version__} moved a private name: adapt operators/torch_private.py"


def test_names_are_there():
    module = nn.Linear(1, 1)
    assert all(hasattr(module, name) for name in torch_private._HOOKS), TORCH
    assert all(hasattr(nn.modules.module, name) for name in torch_private._GLOBAL_HOOKS), TORCH
    assert hasattr(torch._C, "_get_tracing_state"), TORCH
    assert hasattr(torch._C, "_are_functorch_transforms_active"), TORCH
    assert isinstance(torch_private.can_compile_for_gpu(), bool), TORCH


def test_hooks_on_gradients_are_seen():
    module = nn.Sequential(nn.Linear(1, 1))
    assert not torch_private.has_tensor_hooks(module)
    module[0].bias.register_hook(lambda grad: grad)
    assert torch_private.has_tensor_hooks(module), TORCH


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_are_seen(register):
    module = nn.Sequential(nn.Linear(1, 1))
    for where in (module[0], module):
        assert not torch_private.has_hooks(module), TORCH
        handle = getattr(where, register)(lambda *_: None)
        assert torch_private.has_hooks(module), TORCH
        handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert torch_private.has_hooks(module), TORCH
    handle.remove()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing_is_seen():
    seen = []

    def function(x):
        seen.append(torch_private.is_traced(x))
        return x * 2

    function(torch.ones(1))
    torch.func.vmap(function)(torch.ones(2))
    torch.jit.trace(function, torch.ones(1), check_trace=False)
    assert seen == [False, True, True], TORCH


def test_private_operations():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = torch_private.unaliased(x * 2)
    y += 1  # refused for a view that a Function returns
    y.sum().backward()
    assert y._base is None, TORCH
    small = torch_private.upsample_nearest_backward(x.detach(), 2, 2)
    torch.testing.assert_close(small, nn.functional.avg_pool2d(x, 2, divisor_override=1), msg=TORCH)
