"""Values as the page writes them."""

from datetime import datetime
from pathlib import Path
from typing import Any

from geexp.config.labels import ge_label
from geexp.report.measured import Measured
from geexp.report.style import VARIANT_STYLE


def get(tree: Any, *keys: str) -> Any:
    """What lies in nested dicts, or None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def value(of: Any) -> str:
    """A setting as one writes it on the command line."""
    if of is None:
        return "null"
    if isinstance(of, bool):
        return str(of).lower()
    if isinstance(of, list | tuple):
        return f"[{', '.join(map(value, of))}]"
    return str(of)


def p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def spread(measured: Measured) -> str:
    """``22.00 ± 0.12``; n stands beside it."""
    return f"{measured.mean:.2f}" + (f" ± {measured.std:.2f}" if measured.std is not None else "")


def millions(value: Any) -> str:
    found = number(value)
    return f"{found / 1e6:,.3f}" if found is not None else ""


def signed(number: float, places: int = 2) -> str:
    """With a true minus sign."""
    return f"{number:+.{places}f}".replace("-", "−")


def duration(seconds: Any) -> str:
    found = number(seconds)
    if found is None:
        return ""
    if found >= 3600:
        return f"{found / 3600:,.1f} h"
    return f"{found / 60:.1f} min" if found >= 60 else f"{found:.0f} s"


def date(time: Any) -> str:
    found = number(time)
    try:
        return f"{datetime.fromtimestamp(found):%Y-%m-%d %H:%M}" if found is not None else ""
    except (OverflowError, OSError, ValueError):
        return ""


def network(ge: Any) -> str:
    """``ge_label``, also for what another version may have written."""
    if isinstance(ge, dict) and ge.get("variant") in VARIANT_STYLE:
        return ge_label(ge)
    return str(get(ge, "variant"))


def as_given(folder: Path) -> str:
    """A folder below the present one without the way to that."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def below(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else as_given(folder)
