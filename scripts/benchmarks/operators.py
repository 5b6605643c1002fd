"""Compare geexp's operators with timm's, BayesWatch's, the depth-wise convolution and the reference implementation.

    python scripts/benchmarks/operators.py --variants theta --extents 2 4 --device cuda

forward: eval mode without gradients. forward_backward: training mode, with gradients of inputs and all parameters.
bfloat16 uses autocast, as in training. saved: bytes saved for backward, without parameters; peak: peak memory of the
GPU allocator in forward and backward. copies: relative to a copy of x, in time of the same round and in bytes; / ours:
relative to auto, for tails to fused. bandwidth: of a fused tail, forward and backward, as a fraction of the copy's.

timm: its GatherExcite with a repaired constructor. convolution: the same for a global parametrised gather, without the
padding that makes timm's a different operator. bayeswatch: as in that public reproduction, whose pooling differs for
finite extents. Tails: plain is BN, sum and ReLU; timm and unfused have an operator in between; fused is a single
operator, on a GPU for all variants, on a CPU for GE-θ⁻ of global extent.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import measuring
from contenders import OTHERS, others, tails
from geexp.operators import VARIANTS, GatherExcite
from measuring import MEMORY_FORMATS, Row, Target

Shape = tuple[int, int, int]

# Height, width and channels at the end of ResNet-50's blocks, by stage.
RESNET50: list[Shape] = [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]
_ON_GPU = {"rounds": 15, "batch_size": 256, "dtypes": ["bfloat16"]}
# The largest finite extent of the paper and the global one; SE is global.
_USUAL_OPERATORS = [(variant, extent) for variant in VARIANTS if variant != "se" for extent in (8, "global")]
_USUAL_OPERATORS.append(("se", "global"))
# The passes of a fused tail over the map. Forward: read z for the statistics; read z and shortcut, write the result.
# Backward: read gradient, result and z, write the shortcut's gradient; read that and z, write z's. A copy takes two. A
# finite extent reads z once more to gather it, and once for the gradient of a convolution's weight.
_PASSES = {"global": 11, "pooling": 12, "convolution": 13}
# Headings of ratios, and the contenders in the denominator; the first one in a case is used.
_AGAINST = {"copies": ["copy"], "/ ours": ["auto", "fused", "unfused", "reference"]}


@dataclass(frozen=True)
class Case:
    """An operator at a shape; with ``tail`` the end of a block around it: BN, operator, sum with the shortcut, ReLU."""

    variant: str
    extent: int | str
    shape: Shape
    layout: str
    dtype: str
    tail: bool = False

    def __str__(self) -> str:
        operator = measuring.operator_name(self.variant, self.extent)
        whole = f"BN + {operator} + sum + ReLU" if self.tail else operator
        return f"{whole}, {'x'.join(map(str, self.shape))}, {self.layout}, {self.dtype}"


def cases_of(options: argparse.Namespace) -> Iterator[Case]:
    operators = _USUAL_OPERATORS
    with_tail = [(variant, "global") for variant in VARIANTS if variant == "theta_minus" or options.device == "cuda"]
    if options.variants or options.extents:
        operators = [*product(options.variants or VARIANTS, options.extents or measuring.EXTENTS)]
        with_tail = [one for one in operators if one[1] == "global" or options.tails]
    for shape, dtype, layout in product(options.shapes, options.dtypes, options.layouts):
        for variant, extent in operators if not options.tails else ():
            yield Case(variant, extent, shape, layout, dtype)
        for variant, extent in with_tail:
            yield Case(variant, extent, shape, layout, dtype, tail=True)


def targets_of(device: str) -> Iterator[Target]:
    large = RESNET50[0]
    if device == "cuda":
        for variant in VARIANTS:
            case = Case(variant, "global", large, "channels_last", "bfloat16", tail=True)
            yield Target(str(case), "fused", "bandwidth", "≥", 0.75)
        return
    bounds: list[tuple[str, int | str, Shape, str, str, str, dict[str, float]]] = [
        ("theta_minus", "global", large, "saved", "≤", "copy", {"contiguous": 1.01, "channels_last": 1.01}),
        ("theta_minus", 8, large, "saved", "≤", "copy", {"contiguous": 1.03, "channels_last": 1.03}),
        ("theta_plus", 8, large, "saved", "≤", "copy", {"contiguous": 1.70, "channels_last": 1.70}),
        ("theta_minus", 8, large, "forward", "≥", "timm", {"contiguous": 3.5, "channels_last": 1.4}),
        ("theta_minus", 8, large, "forward_backward", "≥", "timm", {"contiguous": 2.2, "channels_last": 1.1}),
        ("theta_minus", "global", large, "forward_backward", "≥", "timm", {"contiguous": 1.0, "channels_last": 1.6}),
    ]
    for variant, shape in product(("theta", "theta_plus"), RESNET50[:2]):
        both = dict.fromkeys(MEMORY_FORMATS, 2.0)
        bounds.append((variant, "global", shape, "forward_backward", "≥", "convolution", both))
    for variant, extent, shape, figure, sign, against, by_layout in bounds:
        for layout, bound in by_layout.items():
            case = Case(variant, extent, shape, layout, "float32")
            yield Target(str(case), "auto", figure, sign, bound, against)
    for layout in MEMORY_FORMATS:
        tail = str(Case("theta_minus", "global", large, layout, "float32", tail=True))
        yield Target(tail, "fused", "forward_backward", "≥", 2.0, "timm")
        yield Target(tail, "fused", "forward_backward", "≤", 1.15, "plain")


class Passes:
    """The passes of a module to be measured."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], gradient: Tensor, dtype: str) -> None:
        self.module, self.inputs, self.gradient, self.half = module, inputs, gradient, dtype != "float32"
        self.leaves = [*inputs, *module.parameters()]

    def forward_with_graph(self) -> Tensor:
        # Parameters stay float32, since casting them under autocast is part of the operator.
        with torch.autocast(self.gradient.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            return self.module(*self.inputs)

    @torch.no_grad()
    def forward(self) -> Tensor:
        return self.forward_with_graph()

    def forward_backward(self) -> tuple[Tensor, ...]:
        y = self.forward_with_graph()
        return torch.autograd.grad(y, self.leaves, self.gradient.to(y.dtype))


def measure(case: Case, options: argparse.Namespace, clock: measuring.Clock) -> Iterator[Row]:
    """Yield a row for the copy and one per contender."""
    torch.manual_seed(0)
    (H, W, C), memory_format = case.shape, MEMORY_FORMATS[case.layout]
    arguments: dict[str, Any] = {"variant": case.variant, "extent": case.extent, "size": (H, W)}
    if case.tail:
        modules = tails(C, **arguments, device=options.device)
    else:
        names = dict.fromkeys([*options.implementations, "reference"])
        modules = {name: GatherExcite(C, **arguments, implementation=name) for name in names} | others(C, **arguments)
    if options.only_ours:
        modules = {name: module for name, module in modules.items() if name not in OTHERS}

    def features() -> Tensor:
        x = torch.randn(options.batch_size, C, H, W, device=options.device, dtype=getattr(torch, case.dtype))
        return x.contiguous(memory_format=memory_format)

    inputs, gradient = [features().requires_grad_() for _ in range(1 + case.tail)], features()
    buffer = torch.empty_like(gradient)
    passes = {
        name: Passes(module.to(options.device).to(memory_format=memory_format), inputs, gradient, case.dtype)
        for name, module in modules.items()
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in ["copy", *modules]}
    for figure in ("forward", "forward_backward"):
        works: dict[str, Callable[[], object]] = {"copy": lambda: buffer.copy_(gradient)}
        for name, its in passes.items():
            its.module.train(figure == "forward_backward")
            works[name] = getattr(its, figure)
        for name, measured in measuring.interleaved(works, clock, rounds=options.rounds, warm_up=2).items():
            seconds[name][figure] = measured
    yield Row(str(case), "copy", seconds["copy"], {"saved": gradient.nbytes})
    for name, its in passes.items():
        saved = measuring.saved_bytes(its.forward_with_graph, its.module.parameters())
        amounts = {"saved": saved} | measuring.peak_bytes(its.forward_backward, options.device)
        if name == "fused":
            both = zip(seconds["copy"]["forward_backward"], seconds[name]["forward_backward"], strict=True)
            gather = "convolution" if case.variant in ("theta", "theta_plus") else "pooling"
            passes = _PASSES["global" if case.extent == "global" else gather]
            amounts["bandwidth"] = statistics.median(passes / 2 * copy / fused for copy, fused in both)
        yield Row(str(case), name, seconds[name], amounts)


def shape(text: str) -> Shape:
    height, width, channels = map(int, text.split("x"))
    return height, width, channels


def main() -> None:
    parser = measuring.operator_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", type=shape, default=RESNET50, help="such as 56x56x256: height, width, C")
    parser.add_argument("--tails", action="store_true", help="tails only, without the operators alone")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.set_defaults(batch_size=8, layouts=[*MEMORY_FORMATS], implementations=["auto"])
    options = measuring.parse(parser, _ON_GPU)
    clock, rows = measuring.clock_for(options.device), list[Row]()
    for case in cases_of(options):
        print(f"measuring {case}", file=sys.stderr)
        rows += measure(case, options, clock)
    title, targets = f"Operators, batch {options.batch_size}, {options.device}", targets_of(options.device)
    measuring.report(title, rows, against=_AGAINST, targets=targets, remarks=__doc__, options=options)


if __name__ == "__main__":
    main()
