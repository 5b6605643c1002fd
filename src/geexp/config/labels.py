"""Networks in the paper's writing: ``ResNet-50``, ``GE-θ⁻ (E4, max)``."""

import re
from typing import Any

VARIANT_LABELS = {"none": "baseline", "se": "SE", "theta_minus": "GE-θ⁻", "theta": "GE-θ", "theta_plus": "GE-θ⁺"}


def ge_label(ge: dict[str, Any]) -> str:
    """``GE-θ (E4, stage 4)``: the variant in the paper's writing, with what is not global, average or everywhere."""
    words = []
    if ge.get("extent", "global") != "global":
        words.append(f"E{ge['extent']}")
    if ge.get("pool") == "max":
        words.append("max")
    if ge.get("reduction", 16) != 16:
        words.append(f"r = {ge['reduction']}")
    if len(ge.get("stages", [])) in (1, 2):
        words.append(f"stage {', '.join(map(str, ge['stages']))}")
    label = VARIANT_LABELS[ge["variant"]]
    return f"{label} ({', '.join(words)})" if words else label


def model_label(name: str) -> str:
    """``ResNet-50`` for ``resnet50``, ``WRN-16-8`` for ``wrn16_8``."""
    if name == "shufflenet_g3":
        return "ShuffleNet"
    if name == "resnet10_slim":
        return "ResNet-10 slim"
    return re.sub(r"wrn(\d+)_(\d+)", r"WRN-\1-\2", re.sub(r"resnet(\d+)", r"ResNet-\1", name))
