"""One look for every picture and table: the names and colours of the variants."""

from typing import Any

from geexp.config.labels import VARIANT_LABELS

# Okabe & Ito's palette, which the colour-blind can tell apart; dashes and markers tell the lines apart without colour.
_LOOK: dict[str, dict[str, Any]] = {
    "none": {"marker": "o", "color": "#000000", "linestyle": (0, (4, 2))},
    "se": {"marker": "s", "color": "#E69F00", "linestyle": (0, (1, 1))},
    "theta_minus": {"marker": "^", "color": "#56B4E9", "linestyle": (0, (6, 1, 1, 1))},
    "theta": {"marker": "D", "color": "#0072B2", "linestyle": "-"},
    "theta_plus": {"marker": "v", "color": "#D55E00", "linestyle": "-"},
}
VARIANT_STYLE = {variant: {"label": VARIANT_LABELS[variant], **look} for variant, look in _LOOK.items()}
# For what stands beside another of the same variant.
SECOND_LOOK: dict[str, Any] = {"label": "", "marker": "P", "color": "#7A7A7A", "linestyle": (0, (2, 1))}
