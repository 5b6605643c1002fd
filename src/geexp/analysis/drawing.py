"""Pictures and terminal tables: the same sizes, formats and line styles everywhere."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# For a user's variant without a style, and for a second network of the same variant.
SECOND_STYLE: dict[str, Any] = {"label": "", "marker": "P", "color": "#7A7A7A", "linestyle": (0, (2, 1))}
MARKERS = ("o", "s", "^", "D", "v", "p", "*", "P")


@dataclass(frozen=True)
class Curve:
    """Values by metric at each of ``epochs``; None where one is missing or not finite."""

    label: str
    style: dict[str, Any]
    epochs: list[int]
    values: dict[str, list[float | None]]


def variant_style(variant: str, own: Any = None) -> dict[str, Any]:
    """``label``, ``color``, ``linestyle`` and ``marker`` of a GE variant, as in ``conf/ge``.

    ``own`` is the style that a run records for a user's variant; invalid values become the neutral style's.
    """
    from geexp.registry import options

    entry = options("ge").get(variant)
    given = own if entry is None else entry["style"]
    style = SECOND_STYLE | {"label": variant if entry is None else entry["label"]}
    if not isinstance(given, dict):
        return style
    if re.fullmatch("#[0-9A-Fa-f]{6}", str(given.get("color"))):
        style["color"] = given["color"]
    if given.get("marker") in MARKERS:
        style["marker"] = given["marker"]
    match given.get("linestyle"):
        case "-":
            style["linestyle"] = "-"
        case [int(offset), [*dashes]] if dashes and all(isinstance(dash, int | float) for dash in dashes):
            style["linestyle"] = (offset, tuple(dashes))
    return style


def line_styles(variants: Sequence[str]) -> list[dict[str, Any]]:
    """A style per network, given their variants; a repeated variant gets one that no variant has."""
    seen: set[str] = set()
    styles = []
    for variant in variants:
        styles.append(SECOND_STYLE if variant in seen else variant_style(variant))
        seen.add(variant)
    return styles


def canvas(rows: int, columns: int, title: str, *, size: tuple[float, float] = (4.6, 4.2), **how: Any) -> Any:
    """A figure with ``rows`` x ``columns`` axes, and the list of these. ``size`` is that of one, in inches."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a dollar sign in a label is one
    from matplotlib import pyplot as plt

    width, height = size
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns + 1, height * rows), layout="constrained", squeeze=False, **how
    )
    figure.suptitle(title, fontsize=11)
    listed = list(axes.flat)
    for axis in listed:
        axis.grid(alpha=0.3)
    return figure, listed


def draw_curves(axis: Any, curves: Sequence[Curve], metric: str, *, suffix: str = "", **look: Any) -> None:
    """The curves of one metric against the epoch."""
    for curve in curves:
        values = [float("nan") if value is None else value for value in curve.values[metric]]
        style = {key: curve.style[key] for key in ("color", "linestyle", "marker")}
        every = max(1, len(values) // 10)  # markers tell curves apart, one at every epoch would hide them
        axis.plot(curve.epochs, values, label=f"{curve.label}{suffix}", markevery=every, **style | look)


def draw_side_by_side(figure: Any, axes: Sequence[Any], curves: Sequence[Curve], metrics: Sequence[str]) -> None:
    """A panel for the training images and one for the validation images, and one legend below."""
    titles = ("training images, augmented", "validation images")
    for axis, metric in zip(axes, metrics, strict=True):
        draw_curves(axis, curves, metric, markersize=4)
    for axis, title in zip(axes, titles, strict=True):  # afterwards: a limit ends the scaling of a shared axis
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)


def save(figure: Any, path: Path, *, suffixes: Sequence[str] = (".svg", ".png")) -> tuple[Path, ...]:
    """Write ``<path>.svg`` and ``<path>.png``; equal content gives an equal SVG."""
    import matplotlib
    from matplotlib import pyplot as plt

    files = tuple(path.with_name(path.name + suffix) for suffix in suffixes)
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        for file in files:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return files


def text_table(title: str, names: Sequence[str], figures: Sequence[str]) -> "Table":
    """A table for the terminal with columns of words, then columns of numbers."""
    from rich.table import Table

    table = Table(title=title)
    for heading in names:
        table.add_column(heading)
    for heading in figures:
        table.add_column(heading, justify="right")
    return table
