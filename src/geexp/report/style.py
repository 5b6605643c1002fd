"""One look for every picture and table: the names and colours of the variants."""

from typing import Any

from geexp.registry import options


def _style(entry: dict[str, Any]) -> dict[str, Any]:
    line = entry["style"]["linestyle"]
    dashes = line if isinstance(line, str) else (line[0], tuple(line[1]))  # as matplotlib wants them
    return {"label": entry["label"], **entry["style"], "linestyle": dashes}


# Okabe & Ito's palette, which the colour-blind can tell apart; dashes and markers tell the lines apart without colour.
VARIANT_STYLE = {variant: _style(entry) for variant, entry in options("ge").items()}
# For what stands beside another of the same variant.
SECOND_LOOK: dict[str, Any] = {"label": "", "marker": "P", "color": "#7A7A7A", "linestyle": (0, (2, 1))}
