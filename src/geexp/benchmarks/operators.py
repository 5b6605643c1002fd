"""``what=operator``: ours against timm's, BayesWatch's, the depth-wise convolution and our own reference.

Forward is in evaluation mode without gradients; forward and backward in training mode, to the gradients of the inputs
and of all parameters. bfloat16 is autocast, as in training. A copy of x runs along: its time is the unit of memory
traffic, its size that of bytes.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geexp.benchmarks.contenders import others
from geexp.benchmarks.interleaved import Clock, clock_for, interleaved
from geexp.benchmarks.memory import peak_bytes, saved_bytes
from geexp.benchmarks.operator_cases import COPY_PASSES, OperatorCase, least_passes, operator_cases, operator_targets
from geexp.benchmarks.progress import Advance, progress
from geexp.benchmarks.rows import Column, Comparison, Row
from geexp.benchmarks.tails import tails
from geexp.config.benchmark import OperatorSettings
from geexp.operators import GatherExcite

_MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_WARM_UP = 2
# The first that was measured in a case is the one that the others are held against.
_OURS = ("auto", "fused", "unfused", "reference")
_REMARKS = [
    "copies: time over that of a copy of x in the same round; / ours: over that of auto, for tails of the fused one "
    "(low-high over the rounds). GB/s: of the passes over memory that forward and backward need at least. kept, peak: "
    "bytes over those of x; kept: for the backward pass, without parameters; peak: of torch's allocator, forward and "
    "backward.",
    "timm: its GatherExcite repaired, since its constructor builds GE-theta-minus without MLP only; the forward pass "
    "is its own. convolution: the same for a global parametrised gather, without the padding that makes timm's another "
    "operator. bayeswatch: as in that public reproduction, whose pooling is another operator for finite extents.",
    "tails: plain has BN, sum and ReLU only; timm and unfused put the operator between, fused is all in one.",
]


def benchmark_operators(settings: OperatorSettings) -> Comparison:
    """Measure what ``settings`` name.

    Raises:
        ConfigError: for ``device=cuda`` without a GPU.
    """
    clock = clock_for(settings.device)
    cases, rows = [*operator_cases(settings)], []
    with progress("measuring", len(cases) * 2 * (_WARM_UP + settings.rounds)) as advance:
        for case in cases:
            rows += _rows(case, settings, clock, advance)
    columns = [
        Column("fwd ms", "forward", scale=1e3),
        Column("copies", "forward", against=("copy",), digits=1),
        Column("/ ours", "forward", against=_OURS),
        Column("fwd+bwd ms", "forward_backward", scale=1e3),
        Column("copies", "forward_backward", against=("copy",), digits=1),
        Column("/ ours", "forward_backward", against=_OURS),
        Column("GB/s", "bandwidth", scale=1e-9, digits=1),
        Column("kept", "saved", against=("copy",)),
        Column("peak", "peak", against=("copy",)),
    ]
    title = f"Operators, batch {settings.batch_size}, {settings.device}"
    return Comparison(title, columns, rows, operator_targets(settings.device), _REMARKS)


def _rows(case: OperatorCase, settings: OperatorSettings, clock: Clock, advance: Advance) -> list[Row]:
    torch.manual_seed(0)
    device, memory_format = torch.device(settings.device), _MEMORY_FORMATS[case.layout]
    options: dict[str, Any] = {"variant": case.variant, "extent": case.extent, "size": case.size}
    if case.tail:
        modules: dict[str, nn.Module] = tails(case.channels, **options)
    else:
        names = dict.fromkeys([*settings.implementations, "reference"])  # which all are compared with
        modules = {name: GatherExcite(case.channels, **options, implementation=name) for name in names}
        modules |= others(case.channels, **options)
    for module in modules.values():
        module.to(device).to(memory_format=memory_format)  # type: ignore[call-overload]  # its stub knows no such thing

    def features() -> Tensor:
        shape = (settings.batch_size, case.channels, *case.size)
        x = torch.randn(shape, device=device, dtype=getattr(torch, case.dtype))
        return x.contiguous(memory_format=memory_format)

    inputs, gradient = [features().requires_grad_() for _ in range(2 if case.tail else 1)], features()
    buffer = torch.empty_like(gradient)
    passes = {name: Passes(module, inputs, gradient, case.dtype) for name, module in modules.items()}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in ["copy", *modules]}
    for what in ("forward", "forward_backward"):
        works: dict[str, Callable[[], object]] = {"copy": lambda: buffer.copy_(gradient)}
        for name, its in passes.items():
            its.module.train(what == "forward_backward")
            works[name] = getattr(its, what)
        measured = interleaved(works, rounds=settings.rounds, warm_up=_WARM_UP, clock=clock, advance=advance)
        for name, seconds in measured.items():
            times[name][what] = seconds
    size = float(gradient.nbytes)
    both = {name: statistics.median(its["forward_backward"]) for name, its in times.items()}
    bandwidth = COPY_PASSES * size / both["copy"]
    rows = [Row(str(case), "copy", times["copy"], {"saved": size, "peak": size, "bandwidth": bandwidth})]
    for name, its in passes.items():
        saved = saved_bytes(its.forward_with_graph, its.module.parameters())
        peak = peak_bytes(its.forward_backward, settings.device)
        amounts: dict[str, float | None] = {
            "saved": saved,
            "peak": peak,
            "bandwidth": least_passes(case) * size / both[name],
        }
        rows.append(Row(str(case), name, times[name], amounts))
    return rows


class Passes:
    """What is timed of a module."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], gradient: Tensor, dtype: str) -> None:
        self.module, self.inputs, self.gradient, self.dtype = module, inputs, gradient, dtype
        self.leaves = [*inputs, *module.parameters()]

    def forward_with_graph(self) -> Tensor:
        # Half precision is left to autocast, whose casts of the parameters belong to the operator.
        half = self.dtype != "float32"
        with torch.autocast(self.gradient.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            return self.module(*self.inputs)

    @torch.no_grad()
    def forward(self) -> Tensor:
        return self.forward_with_graph()

    def forward_backward(self) -> tuple[Tensor, ...]:
        y = self.forward_with_graph()
        return torch.autograd.grad(y, self.leaves, self.gradient.to(y.dtype))
