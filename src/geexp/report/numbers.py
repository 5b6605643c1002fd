"""The numbers that the paper prints, as data (``paper.yaml``), and its rows as networks."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def paper() -> dict[str, Any]:
    """The whole file: ``table1`` … ``table6``, ``detection``, ``figures``. Treat it as read-only."""
    return yaml.safe_load(files("geexp.report").joinpath("paper.yaml").read_text(encoding="utf-8"))


def table_rows(number: int) -> list[dict[str, Any]]:
    """The rows of a table in the paper's order."""
    return paper()[f"table{number}"]["rows"]


def network_of(row: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``build_model`` for a row. A row that names no extent is global; without stages, all."""
    if row["ge"] == "none":
        return {"name": row["model"], "ge": "none"}
    return {
        "name": row["model"],
        "ge": row["ge"],
        "extent": row.get("extent") or "global",
        "stages": row.get("stages"),
        "pool": row.get("pool") or "avg",
    }
