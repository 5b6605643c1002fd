"""Which operators are compared at which shapes, and what is demanded of ours."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from geexp.benchmarks.rows import Target
from geexp.config.benchmark import RESNET50_SHAPES, OperatorSettings, sides
from geexp.config.catalog import VARIANTS

# Of the paper's extents, the largest finite one and the global one; SE is global.
_USUAL_PAIRS: list[tuple[str, int | str]] = [
    *((variant, extent) for variant in ("theta_minus", "theta", "theta_plus") for extent in (8, "global")),
    ("se", "global"),
]
_TAILS: list[tuple[str, int | str]] = [("theta_minus", "global")]
_ALL_EXTENTS: list[int | str] = [2, 4, 8, "global"]


@dataclass(frozen=True)
class OperatorCase:
    """``tail``: not the operator alone, but BN, operator, sum with the shortcut and ReLU, the end of a block."""

    variant: str
    extent: int | str
    shape: str
    layout: str
    dtype: str
    tail: bool = False

    def __str__(self) -> str:
        what = f"{'BN + ' if self.tail else ''}{named(self.variant, self.extent)}{' + sum + ReLU' if self.tail else ''}"
        return f"{what}, {self.shape}, {self.layout}, {self.dtype}"

    @property
    def size(self) -> tuple[int, int]:
        return sides(self.shape)[:2]

    @property
    def channels(self) -> int:
        return sides(self.shape)[2]


def named(variant: str, extent: int | str) -> str:
    return f"{variant} {extent if extent == 'global' else f'e={extent}'}"


def operator_cases(settings: OperatorSettings) -> Iterator[OperatorCase]:
    """Shape by shape; the tails of a shape after its operators."""
    chosen = [*product(settings.variants or VARIANTS, settings.extents or _ALL_EXTENTS)]
    asked = settings.variants is not None or settings.extents is not None
    pairs, tails = (chosen, chosen) if asked else (_USUAL_PAIRS, _TAILS)
    for shape, dtype, layout in product(settings.shapes, settings.dtypes, settings.layouts):
        for variant, extent in pairs:
            yield OperatorCase(variant, extent, shape, layout, dtype)
        for variant, extent in tails:
            if extent == "global":
                yield OperatorCase(variant, extent, shape, layout, dtype, tail=True)


def operator_targets(device: str) -> list[Target]:
    """Of the issue's table. On the CPU at 56x56x256 in float32 unless it says otherwise."""
    return [*_on_a_gpu()] if device == "cuda" else [*_saved(), *_against_timm(), *_against_convolution(), *_tail()]


_LARGE, _MIDDLE = RESNET50_SHAPES[:2]
_LAYOUTS = ("contiguous", "channels_last")
_PASS = {"forward": "forward", "forward_backward": "forward + backward"}


def _saved() -> Iterator[Target]:
    for variant, extent, bound in (("theta_minus", "global", 1.01), ("theta_minus", 8, 1.03), ("theta_plus", 8, 1.70)):
        for layout in _LAYOUTS:
            case = str(OperatorCase(variant, extent, _LARGE, layout, "float32"))
            yield Target("kept for backward / bytes of x", case, "auto", "saved", "copy", at_most=bound)


def _against_timm() -> Iterator[Target]:
    for extent, layout, figure, bound in (
        (8, "contiguous", "forward", 3.5),
        (8, "contiguous", "forward_backward", 2.2),
        (8, "channels_last", "forward", 1.4),
        (8, "channels_last", "forward_backward", 1.1),
        ("global", "channels_last", "forward_backward", 1.6),
        ("global", "contiguous", "forward_backward", 1.0),
    ):
        case = str(OperatorCase("theta_minus", extent, _LARGE, layout, "float32"))
        yield Target(f"{_PASS[figure]}: times faster than timm's", case, "auto", figure, "timm", at_least=bound)


def _against_convolution() -> Iterator[Target]:
    for variant, shape, layout in product(("theta", "theta_plus"), (_LARGE, _MIDDLE), _LAYOUTS):
        case = str(OperatorCase(variant, "global", shape, layout, "float32"))
        name = f"{_PASS['forward_backward']}: times faster than the depth-wise convolution"
        yield Target(name, case, "auto", "forward_backward", "convolution", at_least=2.0)


def _tail() -> Iterator[Target]:
    for layout in _LAYOUTS:
        case = str(OperatorCase("theta_minus", "global", _LARGE, layout, "float32", tail=True))
        both = _PASS["forward_backward"]
        timm, plain = f"{both}: times faster than timm's eager tail", f"{both}: time / the plain tail's, without GE"
        yield Target(timm, case, "fused", "forward_backward", "timm", at_least=2.0)
        yield Target(plain, case, "fused", "forward_backward", "plain", at_most=1.15)


# Of a copy: x is read, and written.
COPY_PASSES = 2


def least_passes(case: OperatorCase) -> int:
    """How often forward and backward together go over a map of x's size, if they do so no oftener than they must.

    Operator: x to gather; x, y; then dy, x to reduce; dy, dx, and x once more for the gradient of a convolution as
    large as the map. Tail with GE-θ⁻: z for the statistics; z, shortcut, out; then dout, out, z, dshortcut; dout again,
    z, dz.
    """
    if case.tail:
        return 11
    return 8 if case.variant in ("theta", "theta_plus") else 7


def _on_a_gpu() -> Iterator[Target]:
    case = OperatorCase("theta_minus", "global", _LARGE, "channels_last", "bfloat16", tail=True)
    name = f"{_PASS['forward_backward']}: copies, of which {least_passes(case)} passes take this at 75 % bandwidth"
    bound = round(least_passes(case) / COPY_PASSES / 0.75, 2)
    yield Target(name, str(case), "fused", "forward_backward", "copy", at_most=bound)
