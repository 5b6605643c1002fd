"""Blocks of timm's ResNet whose tail - BN, Gather-Excite, residual sum, ReLU - is computed as one operator.

The block stays what it is: its class, its modules and the names of their parameters. It only gets a ``forward`` of its
own, which looks at the modules afresh at each call and leaves to timm's whatever the operator does not cover.
"""

import logging
from typing import Any

import timm.models.resnet
import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

from geexp.operators import (
    GatherExcite,
    average_excite_tail,
    finite_average_excite_tail,
    tail_failure,
    takes_tail,
)
from geexp.operators.gather import Extent, is_channels_last
from geexp.operators.implementation import is_observed, is_traced

log = logging.getLogger(__name__)

# The last BN and activation of timm's blocks; between them are the slot ``se``, ``drop_path`` and the sum.
_ENDS: dict[type[nn.Module], tuple[str, str]] = {
    timm.models.resnet.BasicBlock: ("bn2", "act2"),
    timm.models.resnet.Bottleneck: ("bn3", "act3"),
}

# The sweeps are compiled when first needed, in 24 s on one thread of an EPYC 9004, in 11 s once they lie in Inductor's
# cache. Against Gather-Excite's own operator a block then gains 10 ms per step at N=8, 56², and 1 ms or nothing at 14²
# (channels_last; 22 and 5 ms otherwise). ResNet-50 has that back within an epoch; small networks, with less than this
# many values in a branch, never would.
_LEAST_VALUES_ON_CPU = 2**19

_said: set[str] = set()


def fuse_tail(block: nn.Module) -> None:
    """Let this block compute its tail as one operator where it can; in others than timm's own, do nothing.

    That is with GE-θ⁻: of global extent, whose gather comes with BN's statistics, see ``geexp.operators.tail``, and of
    a finite one, which then keeps no more than the plain block, see ``geexp.operators.finite_tail``.
    """
    if type(block) in _ENDS:
        block.forward = FusedForward(block)


class FusedForward:
    """The forward pass of a block. An object instead of a closure, so that the block can be copied and pickled."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, x: Tensor) -> Tensor:
        block: Any = self.block
        if not _may_fuse(block, x):
            return type(block).forward(block, x)
        norm_name, act_name = _ENDS[type(block)]
        norm, act = getattr(block, norm_name), getattr(block, act_name)
        branch = _branch(block, x)
        shortcut = x if block.downsample is None else block.downsample(x)
        if _fuses(block.se, norm, branch, shortcut):
            if block.se.extent == "global":
                _say("compiling BN, Gather-Excite, sum and ReLU as one operator: half a minute, once", logging.INFO)
                return average_excite_tail(norm, branch, shortcut)
            return finite_average_excite_tail(norm, branch, shortcut, block.se.extent)
        out = block.se(norm(branch))
        out += shortcut
        return act(out)


def _may_fuse(block: Any, x: Tensor) -> bool:
    """What can be said before the branch is computed: somebody learns, and nobody looks at the tail's parts."""
    operator, (norm_name, act_name) = block.se, _ENDS[type(block)]
    if not (type(operator) is GatherExcite and operator.averages and operator.implementation != "reference"):
        return False
    # Without gradients the plain operations, for numbers equal to the last bit wherever a network is cut open.
    if not torch.is_grad_enabled() or is_traced(x) or block.drop_path is not None:
        return False
    norm, act = getattr(block, norm_name), getattr(block, act_name)
    if isinstance(norm, nn.SyncBatchNorm):
        _say("SyncBatchNorm: BN, Gather-Excite, sum and ReLU are computed one by one, as one they know of one device")
        return False
    failure = tail_failure() if operator.extent == "global" else None
    if failure is not None:
        _say(
            "BN, Gather-Excite, sum and ReLU are computed one by one: they could not be compiled as one "
            f"({type(failure).__name__}: {(str(failure).strip() or 'no reason given').splitlines()[0]}). Install a C++ "
            "compiler, on a GPU also Triton, or say ge.implementation=reference"
        )
        return False
    return type(act) is nn.ReLU and not any(map(is_observed, (norm, operator, act)))


def _branch(block: Any, x: Tensor) -> Tensor:
    """What reaches the last BN."""
    is_basic = type(block) is timm.models.resnet.BasicBlock
    if is_basic:
        return block.conv2(block.aa(block.act1(block.drop_block(block.bn1(block.conv1(x))))))
    x = block.act1(block.bn1(block.conv1(x)))
    return block.conv3(block.aa(block.act2(block.drop_block(block.bn2(block.conv2(x))))))


def _fuses(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> bool:
    learns = any(t.requires_grad for t in (branch, shortcut, *norm.parameters()))
    if not learns or not takes_tail(norm, branch, shortcut):
        return False
    return operator.implementation == "fused" or _pays(operator.extent, branch)


def _pays(extent: Extent, branch: Tensor) -> bool:
    if extent == "global":
        # Without Triton nothing can be compiled for a GPU. With it no measurement of ours speaks against it yet.
        return has_triton() if branch.is_cuda else branch.numel() >= _LEAST_VALUES_ON_CPU
    # It keeps half of what one operation after the other keeps, and takes 0.98 to 1.02 of the time for forward and
    # backward at 56², 28² and 14² with e = 2, 4, 8 (N=8, float32, one thread of an EPYC 9004). Contiguous maps take
    # longer where the gate is resized by index, 1.13 at 14² with e=4, and where it is a single cell, 1.11 at 7² with
    # e=8; in channels_last both take 1.01 to 1.04. Nothing was measured on a GPU.
    grid = [-(-size // extent) for size in branch.shape[2:]]
    divides = all(size % cells == 0 for size, cells in zip(branch.shape[2:], grid, strict=True))
    return branch.device.type == "cpu" and (is_channels_last(branch) or (divides and max(grid) > 1))


def _say(message: str, level: int = logging.WARNING) -> None:
    """Once per process: the network has many blocks, and the training many steps."""
    if message not in _said:
        _said.add(message)
        log.log(level, message)
