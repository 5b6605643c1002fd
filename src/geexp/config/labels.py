"""Names of networks as in the paper: ``ResNet-50``, ``GE-θ⁻ (E4, max)``."""

from collections.abc import Mapping
from typing import Any

from geexp.registry import options


def variant_label(variant: str) -> str:
    """``GE-θ⁻`` for ``theta_minus``; the plain name for a custom variant."""
    return str(options("ge").get(variant, {}).get("label", variant))


def ge_label(ge: Mapping[str, Any], label: str | None = None) -> str:
    """``GE-θ (E4, stage 4)``: the variant (or ``label``), with its extent, pooling and stages unless default.

    ``ge`` is the ``ge`` entry of a run's identity.
    """
    words = []
    if ge.get("extent", "global") != "global":
        words.append(f"E{ge['extent']}")
    if ge.get("pool") == "max":
        words.append("max")
    if "border" in ge:
        words.append(f"border {ge['border']}")
    if ge.get("reduction", 16) != 16:
        words.append(f"r = {ge['reduction']}")
    if len(ge.get("stages", [])) in (1, 2):
        words.append(f"stage {', '.join(map(str, ge['stages']))}")
    label = label or variant_label(ge["variant"])
    return f"{label} ({', '.join(words)})" if words else label


def model_label(name: str) -> str:
    """``ResNet-50`` for ``resnet50``; the plain name for a custom network."""
    return str(options("model").get(name, {}).get("label", name))
