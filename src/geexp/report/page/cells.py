"""How the page draws single cells: the mark of a variant, a command to copy, a number with its sign."""

from typing import Any

from markupsafe import Markup

# matplotlib's markers by plotly's names, and as paths around 0, 0.
_MARKERS = {
    "o": ("circle", "M3 0A3 3 0 1 1 -3 0A3 3 0 1 1 3 0Z"),
    "s": ("square", "M-2.6 -2.6H2.6V2.6H-2.6Z"),
    "^": ("triangle-up", "M0 -3.4L3.4 2.6H-3.4Z"),
    "D": ("diamond", "M0 -3.6L3.6 0L0 3.6L-3.6 0Z"),
    "v": ("triangle-down", "M0 3.4L-3.4 -2.6H3.4Z"),
    "p": ("pentagon", "M0 -3.4L3.2 -1.1L2 2.8H-2L-3.2 -1.1Z"),
    "*": ("star", "M0 -4L1 -1.3L3.8 -1.2L1.6 .5L2.4 3.2L0 1.6L-2.4 3.2L-1.6 .5L-3.8 -1.2L-1 -1.3Z"),
    "P": ("cross", "M-1.2 -3.4H1.2V-1.2H3.4V1.2H1.2V3.4H-1.2V1.2H-3.4V-1.2H-1.2Z"),
}


def ink(style: dict[str, Any]) -> str:
    """A style's colour in CSS; black is nearly white on a dark page."""
    return "var(--black)" if style["color"] == "#000000" else style["color"]


def dash(style: dict[str, Any], width: float = 2) -> str:
    """plotly's description of a dashed line; it is SVG's too."""
    line = style["linestyle"]
    return "solid" if line == "-" else ",".join(f"{part * width:g}px" for part in line[1])


def plotly_line(style: dict[str, Any]) -> dict[str, str]:
    """How plotly draws a curve; the page's script looks up the colour."""
    return {"colour": ink(style), "dash": dash(style), "symbol": _MARKERS[style["marker"]][0]}


def mark(style: dict[str, Any]) -> Markup:
    """A sample of a variant's line, small enough to stand in a text."""
    dashes = dash(style).replace("px", "").replace("solid", "")
    return Markup(
        '<svg class="mark" viewBox="0 0 28 10" aria-hidden="true">'
        '<path d="M0 5H28" stroke="{0}" stroke-width="2" stroke-dasharray="{1}"/>'
        '<path d="{2}" transform="translate(14 5)" fill="{0}"/></svg>'
    ).format(ink(style), dashes or "none", _MARKERS[style["marker"]][1])


def copying(command: str) -> Markup:
    """A button that copies a command."""
    return Markup(
        '<button type="button" class="copy" data-copy="{0}" aria-label="Copy the command: {0}" '
        'title="Copy the command"><svg viewBox="0 0 16 16" aria-hidden="true"><use href="#i-copy"/></svg></button>'
    ).format(command)


def signed(text: str) -> str:
    """With a true minus sign."""
    return text.replace("-", "−")


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
