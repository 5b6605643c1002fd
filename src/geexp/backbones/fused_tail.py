"""Blocks of timm's ResNet that compute their tail - BN, Gather-Excite, sum, ReLU - as one operator.

The block keeps its class, modules and parameter names; only its ``forward`` is replaced. The new one inspects the
modules at each call and falls back to timm's if the operator does not apply. On a CPU the operator is compiled and
supports GE-θ⁻ of global extent; on a GPU it consists of kernels for all variants: see ``geexp.operators.tail``.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from geexp.backbones import timm_private
from geexp.operators import (
    GatherExcite,
    average_excite_tail,
    gather_excite_tail,
    tail_failure,
    takes_kernels,
    takes_tail,
)
from geexp.operators.tail.choices import kernels_pay
from geexp.operators.torch_private import can_compile_for_gpu, has_hooks, is_traced

log = logging.getLogger(__name__)

# Compiling takes 24 s on one thread of an EPYC 9004, 11 s from Inductor's cache. Compared with the unfused operator a
# block then saves 10 ms per step at N=8, 56², and at most 1 ms at 14² (channels_last; 22 and 5 ms in contiguous
# format). For ResNet-50 this pays off within an epoch, for networks with fewer values in a branch never.
_LEAST_VALUES_ON_CPU = 2**19

_logged: set[str] = set()


def fuse_tail(block: nn.Module) -> None:
    """Make this block compute its tail as one operator where possible. Only timm's blocks are changed."""
    if type(block) in timm_private.BRANCHES:
        block.forward = FusedForward(block)


class FusedForward:
    """The forward pass of a block; a class rather than a closure, so that the block can be copied and pickled."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, x: Tensor) -> Tensor:
        block: Any = self.block
        norm, act = (getattr(block, name) for name in timm_private.ENDS[type(block)])
        if not _may_fuse(block, norm, act, x):
            return type(block).forward(block, x)
        branch, shortcut = timm_private.branch(block, x), timm_private.shortcut(block, x)
        fuses = _fuses(block.se, norm, branch, shortcut)
        if fuses and _has_kernels(x):
            return gather_excite_tail(block.se, norm, branch, shortcut)
        if fuses:
            _log_once("compiling BN, Gather-Excite, sum and ReLU into one operator (once, about 30 s)", logging.INFO)
            return average_excite_tail(norm, branch, shortcut)
        out = block.se(norm(branch))
        out += shortcut
        return act(out)


def _may_fuse(block: Any, norm: nn.Module, act: nn.Module, x: Tensor) -> bool:
    """The conditions that can be checked before the branch is computed, such as no hook on a part of the tail."""
    operator = block.se
    if type(operator) is not GatherExcite or operator.implementation == "reference":
        return False
    if not (operator.gathers_linearly if _has_kernels(x) else operator.is_global_average):
        return False
    # Without gradients use the plain operations, so that a network cut at a block gives bit-identical logits.
    if not torch.is_grad_enabled() or is_traced(x) or block.drop_path is not None:
        return False
    if isinstance(norm, nn.SyncBatchNorm):
        _log_once("SyncBatchNorm: BN, Gather-Excite, sum and ReLU are not fused; the fused operator is single-device")
        return False
    if x.is_cuda and not can_compile_for_gpu():
        _log_once("BN, Gather-Excite, sum and ReLU are not fused: Triton is not installed, or does not know this GPU")
        return False
    failure = tail_failure()
    if failure is not None and not _has_kernels(x):
        _log_once(
            "BN, Gather-Excite, sum and ReLU are not fused: compilation failed "
            f"({type(failure).__name__}: {(str(failure).strip() or 'no reason given').splitlines()[0]}). Install a C++ "
            "compiler, or set ge.implementation=reference"
        )
        return False
    return type(act) is nn.ReLU and not any(map(has_hooks, (norm, operator, act)))


def _fuses(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> bool:
    learns = any(t.requires_grad for t in (branch, shortcut, *norm.parameters(), *operator.parameters()))
    if not learns:
        return False
    if _has_kernels(branch):
        return takes_kernels(operator, norm, branch, shortcut) and (
            operator.implementation == "fused" or kernels_pay(operator, norm, branch, shortcut)
        )
    if not takes_tail(norm, branch, shortcut):
        return False
    return operator.implementation == "fused" or branch.numel() >= _LEAST_VALUES_ON_CPU


def _has_kernels(x: Tensor) -> bool:
    """Whether the tail is computed by kernels on x's device."""
    return x.is_cuda


def _log_once(message: str, level: int = logging.WARNING) -> None:
    """Log a message once per process, not for every block and step."""
    if message not in _logged:
        _logged.add(message)
        log.log(level, message)
