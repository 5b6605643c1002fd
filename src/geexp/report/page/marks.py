"""The look of the variants on the page: a line with a marker, in colours for light and for dark."""

from typing import Any

from markupsafe import Markup

from geexp.report.style import VARIANT_STYLE

# Where a colour of the one style cannot be seen on a dark page.
_ON_DARK = {"#000000": "#f2f2f2"}
# matplotlib's markers by plotly's names, and as paths around 0, 0.
_PLOTLY = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down"}
_PATHS = {
    "circle": "M3 0A3 3 0 1 1 -3 0A3 3 0 1 1 3 0Z",
    "square": "M-2.6 -2.6H2.6V2.6H-2.6Z",
    "triangle-up": "M0 -3.4L3.4 2.6H-3.4Z",
    "diamond": "M0 -3.6L3.6 0L0 3.6L-3.6 0Z",
    "triangle-down": "M0 3.4L-3.4 -2.6H3.4Z",
    "pentagon": "M0 -3.4L3.2 -1.1L2 2.8H-2L-3.2 -1.1Z",
    "star": "M0 -4L1 -1.3L3.8 -1.2L1.6 .5L2.4 3.2L0 1.6L-2.4 3.2L-1.6 .5L-3.8 -1.2L-1 -1.3Z",
    "cross": "M-1.2 -3.4H1.2V-1.2H3.4V1.2H1.2V3.4H-1.2V1.2H-3.4V-1.2H-1.2Z",
}


def marker(variant: Any, place: int) -> str:
    """plotly's name of a marker: the variant's own, and others for further lines of the same variant."""
    own = _PLOTLY[VARIANT_STYLE[variant]["marker"]] if variant in VARIANT_STYLE else "circle"
    return [own, *(name for name in _PATHS if name != own)][place % len(_PATHS)]


def dash(variant: Any, width: float = 2) -> str:
    """plotly's description of a dashed line; it is SVG's too."""
    linestyle: Any = VARIANT_STYLE[variant]["linestyle"] if variant in VARIANT_STYLE else "-"
    return "solid" if linestyle == "-" else ",".join(f"{part * width:g}px" for part in linestyle[1])


def known(variant: Any) -> str:
    """A variant as part of a name in CSS; ``other`` for what another version may have written."""
    return str(variant) if variant in VARIANT_STYLE else "other"


def colours() -> str:
    """The variants' colours as properties of CSS."""
    lines = [
        f"--v-{name}:light-dark({style['color']},{_ON_DARK.get(style['color'], style['color'])});"
        for name, style in VARIANT_STYLE.items()
    ]
    return f":root{{{''.join(lines)}--v-other:light-dark(#777,#999)}}\n"


def symbols() -> Markup:
    """What ``mark`` refers to."""
    drawn = [
        f'<symbol id="v-{known(name)}" viewBox="0 0 28 10">{_drawing(name, marker(name, 0))}</symbol>'
        for name in [*VARIANT_STYLE, "other"]
    ]
    return Markup("".join(drawn))


def mark(variant: Any, marker: str | None = None) -> Markup:
    """A sample of a variant's line, small enough to stand in a text."""
    inner = f'<use href="#v-{known(variant)}"/>' if marker is None else _drawing(variant, marker)
    return Markup(f'<svg class="mark" viewBox="0 0 28 10" aria-hidden="true">{inner}</svg>')


def _drawing(variant: Any, marker: str) -> str:
    colour = f"var(--v-{known(variant)})"
    dashes = dash(variant).replace("px", "")
    dashed = "" if dashes == "solid" else f' stroke-dasharray="{dashes}"'
    return (
        f'<path d="M0 5H28" stroke="{colour}" stroke-width="2"{dashed}/>'
        f'<path d="{_PATHS[marker]}" transform="translate(14 5)" fill="{colour}"/>'
    )


def plotly_line(variant: Any, place: int) -> dict[str, Any]:
    """How a curve is drawn; its colour is looked up on the page."""
    return {"variant": known(variant), "dash": dash(variant), "symbol": marker(variant, place)}
