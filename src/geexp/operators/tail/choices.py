"""What ``implementation="auto"`` takes on a GPU: measured once for each case on the device at hand, and then kept.

A case is a variant, the shape of the map, its dtype and its memory format; not the number of images, which is smaller
in the last batch of an epoch. Distributed processes measure for themselves; what they choose between agrees up to
rounding.
"""

import copy
import logging
import subprocess
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from geexp.operators.gather import is_channels_last
from geexp.operators.gather_excite import GatherExcite
from geexp.operators.tail.kernels import gather_excite_tail

log = logging.getLogger(__name__)

_FUSED, _COMPOSED = "fused", "composed"
_ROUNDS = 3
# How far two results in this precision may differ, in norm: most of it are ReLUs of sums that are zero up to rounding.
_TOLERANCES = {torch.bfloat16: 0.15, torch.float16: 0.05, torch.float32: 0.02, torch.float64: 1e-6}

_chosen: dict[str, str] = {}


def export() -> dict[str, str]:
    """All choices of this process, for a run to keep."""
    return dict(_chosen)


def restore(choices: Mapping[str, str]) -> None:
    """Take the choices of an earlier process instead of measuring."""
    _chosen.update(choices)


def kernels_pay(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> bool:
    """Whether ``gather_excite_tail`` is to be used for these inputs. Measures a case at its first use."""
    if torch.are_deterministic_algorithms_enabled():
        return False
    case = _case(operator, branch)
    if case not in _chosen:
        if branch.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        _chosen[case], reason = _measure(operator, norm, branch, shortcut)
        log.info("%s: BN, Gather-Excite, sum and ReLU %s: %s", case, _chosen[case], reason)
    return _chosen[case] == _FUSED


def _case(operator: GatherExcite, branch: Tensor) -> str:
    C, H, W = branch.shape[1:]
    layout = "channels_last" if is_channels_last(branch) else "contiguous"
    return f"{operator.variant} {operator.extent} {C}x{H}x{W} {str(branch.dtype).removeprefix('torch.')} {layout}"


def _measure(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> tuple[str, str]:
    """The choice and the reason for it. Changes no module, and no state of a random generator."""
    operator, norm = copy.deepcopy(operator), copy.deepcopy(norm)
    parameters = [p for p in (*norm.parameters(), *operator.parameters()) if p.requires_grad]
    generator = torch.Generator(branch.device).manual_seed(0)
    probe = torch.empty_like(branch, requires_grad=False).normal_(generator=generator)

    def steps(tail: Callable[..., Tensor]) -> Callable[[], list[Tensor]]:
        def step() -> list[Tensor]:
            inputs = [t.detach().requires_grad_() for t in (branch, shortcut)]
            out = tail(operator, norm, *inputs)
            of_branch, of_shortcut, *rest = torch.autograd.grad(out, [*inputs, *parameters], probe)
            # The parameters together: gradients that are zero but for rounding do not count.
            return [out.detach(), of_branch, of_shortcut, *([torch.cat([g.flatten() for g in rest])] if rest else [])]

        return step

    fused, composed = steps(gather_excite_tail), steps(_composition)
    # Hooks on saved tensors, as checkpointing has them, are for the network's own.
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach(), lambda t: t):
        try:
            differences = list(map(_difference, fused(), composed()))
            if not all(difference <= _TOLERANCES[branch.dtype] for difference in differences):
                shown = ", ".join(f"{difference:.2g}" for difference in differences)
                return _COMPOSED, f"the fused results differ (relative, of output and gradients: {shown})"
            of_fused, of_composed = milliseconds([fused, composed])
        except torch.OutOfMemoryError:
            return _COMPOSED, "too little memory to compare with fused ones"
        except _compiler_errors() as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            return _COMPOSED, f"compiling the fused ones failed ({type(error).__name__}: {reason})"
    choice = _FUSED if of_fused <= 1.05 * of_composed else _COMPOSED  # near a tie the same one in every run
    return (
        choice,
        f"{of_fused:.2f} ms fused, {of_composed:.2f} ms composed, forward and backward of {len(branch)} images",
    )


def _composition(operator: GatherExcite, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> Tensor:
    out = operator(norm(branch))
    out += shortcut
    return out.relu_()


def _difference(a: Tensor, b: Tensor) -> float:
    """The norm of the difference over that of ``b``; NaN if a value is not finite."""
    a, b = a.double() if a.dtype == torch.float64 else a.float(), b.to(a.dtype)
    return float((a - b).norm() / b.norm().clamp(min=torch.finfo(torch.float32).tiny))


def milliseconds(steps: list[Callable[[], object]]) -> list[float]:
    """The shortest time that each step took on the current GPU, in turns."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(1 + _ROUNDS):
        for step, taken in zip(steps, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end))
    return [min(taken[1:]) for taken in times]


def _compiler_errors() -> tuple[type[Exception], ...]:
    """What Triton raises where it cannot compile or load a kernel; it also runs the system's C compiler."""
    from triton.errors import TritonError

    return RuntimeError, OSError, subprocess.SubprocessError, TritonError
