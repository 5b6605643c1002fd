"""Pictures and terminal tables: the same sizes, formats and line styles everywhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# For a user's variant, and for a second network of the same variant.
SECOND_STYLE: dict[str, Any] = {"label": "", "marker": "P", "color": "#7A7A7A", "linestyle": (0, (2, 1))}


def variant_style(variant: str) -> dict[str, Any]:
    """``label``, ``color``, ``linestyle`` and ``marker`` of a GE variant, as in ``conf/ge``."""
    from geexp.registry import options

    entry = options("ge").get(variant)
    if entry is None:
        return {**SECOND_STYLE, "label": variant}
    line = entry["style"]["linestyle"]
    dashes = line if isinstance(line, str) else (line[0], tuple(line[1]))
    return {"label": entry["label"], **entry["style"], "linestyle": dashes}


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


def save(figure: Any, path: Path) -> tuple[Path, ...]:
    """Write ``<path>.svg`` and ``<path>.png``; equal content gives an equal SVG."""
    import matplotlib
    from matplotlib import pyplot as plt

    files = tuple(path.with_name(path.name + suffix) for suffix in (".svg", ".png"))
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
