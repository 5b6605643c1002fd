"""One look for every picture and table: the names and colours of the variants."""

from typing import Any

# Okabe & Ito's palette, which the colour-blind can tell apart; dashes and markers tell the lines apart without colour.
VARIANT_STYLE: dict[str, dict[str, Any]] = {
    "none": {"label": "baseline", "marker": "o", "color": "#000000", "linestyle": (0, (4, 2))},
    "se": {"label": "SE", "marker": "s", "color": "#E69F00", "linestyle": (0, (1, 1))},
    "theta_minus": {"label": "GE-θ⁻", "marker": "^", "color": "#56B4E9", "linestyle": (0, (6, 1, 1, 1))},
    "theta": {"label": "GE-θ", "marker": "D", "color": "#0072B2", "linestyle": "-"},
    "theta_plus": {"label": "GE-θ⁺", "marker": "v", "color": "#D55E00", "linestyle": "-"},
}


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
    label = VARIANT_STYLE[ge["variant"]]["label"]
    return f"{label} ({', '.join(words)})" if words else str(label)
