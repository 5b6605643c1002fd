"""Pictures as files: the same grid, sizes and formats for all of them."""

from pathlib import Path
from typing import Any


def canvas(rows: int, columns: int, title: str, *, size: tuple[float, float] = (4.6, 4.2), **how: Any) -> Any:
    """A figure with ``rows`` x ``columns`` axes, and these in a list. ``size`` is of one, in inches."""
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
    """``<path>.svg`` and ``<path>.png``; the same content makes the same SVG."""
    import matplotlib
    from matplotlib import pyplot as plt

    files = tuple(path.with_name(path.name + suffix) for suffix in (".svg", ".png"))
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        for file in files:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return files
