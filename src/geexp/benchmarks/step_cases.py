"""Which networks are compared over a training step, and what is demanded of ours."""

from collections.abc import Iterator
from itertools import product

from geexp.benchmarks.operator_cases import named
from geexp.benchmarks.rows import Target
from geexp.config.benchmark import StepSettings
from geexp.config.catalog import VARIANTS

PLAIN = "plain"
_USUAL_PAIRS: list[tuple[str, int | str]] = [("theta_minus", 8), *((variant, "global") for variant in VARIANTS)]


def step_case(model: str, variant: str, extent: int | str, layout: str, precision: str) -> str:
    return f"{model}, {named(variant, extent)}, {layout}, {precision}"


def step_pairs(settings: StepSettings) -> list[tuple[str, int | str]]:
    if settings.variants is None and settings.extents is None:
        return _USUAL_PAIRS
    return [*product(settings.variants or VARIANTS, settings.extents or ("global",))]


def step_targets(device: str) -> list[Target]:
    """Of the issue's table: on the CPU in float32, on a GPU in bfloat16 at batch 256."""
    return [*_on_a_gpu()] if device == "cuda" else [*_time(), *_saved()]


_STEP = "training step / the plain network's"


def _time() -> Iterator[Target]:
    for variant, bound in (("theta_minus", 1.04), ("theta", 1.20), ("theta_plus", 1.25)):
        case = step_case("resnet50", variant, "global", "channels_last", "32-true")
        yield Target(_STEP, case, "auto", "step", PLAIN, at_most=bound)


def _saved() -> Iterator[Target]:
    bounds: list[tuple[int | str, float]] = [("global", 1.01), (8, 1.27)]
    for layout, (extent, bound) in product(("contiguous", "channels_last"), bounds):
        case = step_case("resnet50", "theta_minus", extent, layout, "32-true")
        yield Target("kept for backward / the plain network's", case, "fused", "saved", PLAIN, at_most=bound)


def _on_a_gpu() -> Iterator[Target]:
    for variant, bound in (("theta_minus", 1.03), ("theta", 1.08), ("theta_plus", 1.10), ("se", 1.08)):
        case = step_case("resnet50", variant, "global", "channels_last", "bf16-mixed")
        yield Target(_STEP, case, "auto", "step", PLAIN, at_most=bound)
