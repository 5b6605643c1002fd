"""Blocks of timm's ResNet that compute their tail - BN, GE-θ⁻ of global extent, residual sum, ReLU - as one operator.

The block keeps its class, modules and parameter names; only its ``forward`` is replaced. The new one inspects the
modules at each call and falls back to timm's if the operator does not apply. See ``geexp.operators.tail``.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from geexp.backbones import timm_private
from geexp.operators import GatherExcite, average_excite_tail, tail_failure, takes_tail
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
        if _fuses(block.se, norm, branch, shortcut):
            _log_once("compiling BN, Gather-Excite, sum and ReLU into one operator (once, about 30 s)", logging.INFO)
            return average_excite_tail(norm, branch, shortcut)
        out = block.se(norm(branch))
        out += shortcut
        return act(out)


def _may_fuse(block: Any, norm: nn.Module, act: nn.Module, x: Tensor) -> bool:
    """The conditions that can be checked before the branch is computed, such as no hook on a part of the tail."""
    operator = block.se
    if type(operator) is not GatherExcite or not operator.is_global_average or operator.implementation == "reference":
        return False
    # Without gradients use the plain operations, so that a network cut at a block gives bit-identical logits.
    if not torch.is_grad_enabled() or is_traced(x) or block.drop_path is not None:
        return False
    if isinstance(norm, nn.SyncBatchNorm):
        _log_once("SyncBatchNorm: BN, Gather-Excite, sum and ReLU are not fused; the fused operator is single-device")
        return False
    failure = tail_failure()
    if failure is not None:
        _log_once(
            "BN, Gather-Excite, sum and ReLU are not fused: compilation failed "
            f"({type(failure).__name__}: {(str(failure).strip() or 'no reason given').splitlines()[0]}). Install a C++ "
            "compiler, on a GPU also Triton, or set ge.implementation=reference"
        )
        return False
    return type(act) is nn.ReLU and not any(map(has_hooks, (norm, operator, act)))


def _fuses(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> bool:
    learns = any(t.requires_grad for t in (branch, shortcut, *norm.parameters()))
    if not learns or not takes_tail(norm, branch, shortcut):
        return False
    if operator.implementation == "fused":
        return True
    return can_compile_for_gpu() if branch.is_cuda else branch.numel() >= _LEAST_VALUES_ON_CPU


def _log_once(message: str, level: int = logging.WARNING) -> None:
    """Log a message once per process, not for every block and step."""
    if message not in _logged:
        _logged.add(message)
        log.log(level, message)
