"""Complexity on the terminal or as JSON: one network by stage, or a table's columns, computed beside printed."""

import json
from functools import cache
from typing import Any

from rich.console import Console

from geexp.backbones.complexity import Complexity, Part
from geexp.config.schema import ComplexityConfig
from geexp.report.rows import paper, preset_config, presets_of, rows_of
from geexp.report.tables import Column, Table, to_terminal
from geexp.runs.identity import ge_slug
from geexp.training.network import count_network

# Printed values that no reading of the paper reproduces. They are shown, not matched.
KNOWN_DIFFERENCES = {
    (4, "GE-θ (E2)", "mflops"): "no reading found gives the printed value; the global rows fit to the decimal",
    (4, "GE-θ (E4)", "mflops"): "as for E2",
    (4, "GE-θ (E8)", "mflops"): "as for E2",
    (4, "SE", "params_m"): "two 1x1 convolutions with biases in all 16 units give more than is printed",
}


def print_model(config: ComplexityConfig) -> None:
    """``model=… ge=…``: parameters and multiply-accumulates by stage."""
    size, classes = config.image_size or config.model.home_size, config.num_classes or config.model.home_classes
    complexity = count_network(
        config.model, config.ge, image_size=size, num_classes=classes, in_channels=config.in_channels
    )
    ge = ge_slug(config.ge, config.model)
    if config.format == "json":
        print(json.dumps({"model": config.model.name, "ge": ge, **complexity.as_dict()}))
        return
    columns: list[Column[tuple[str, Part]]] = [
        Column("part", lambda row: row[0], right=False),
        Column("parameters", lambda row: f"{row[1].params:,}"),
        Column("with BN statistics*", lambda row: f"{row[1].params_with_bn_statistics:,}"),
        Column("multiply-accumulates", lambda row: f"{row[1].macs:,}"),
    ]
    title = f"{config.model.name}, GE {ge}, {size}x{size}, {classes} classes"
    console = Console()
    rows = [*complexity.parts.items(), ("total", complexity.total)]
    console.print(to_terminal(Table(columns, rows, title=title, total=True)))
    console.print("* as the paper counts #Params", style="dim")


def table_comparison(number: int) -> list[dict[str, Any]]:
    """For each row of Table 1, 2, 3 or 4: printed and computed complexity, and whether they agree.

    Multiply-accumulates agree if they are equal when rounded as printed, parameters if they are within 0.1 M.
    """
    unit, places = unit_of(number)
    comparison = []
    for row in rows_of(number):
        total = _counted(presets_of(row.training)[0]).total
        macs = total.macs / (1e6 if unit == "mflops" else 1e9)
        params = total.params_with_bn_statistics / 1e6
        columns = {}
        for column, computed, agrees in (
            (unit, macs, round(macs, places) == row.complexity[unit]),
            ("params_m", params, abs(params - row.complexity["params_m"]) < 0.1),  # the paper does not always round
        ):
            columns[column] = {
                "printed": row.complexity[column],
                "computed": computed,
                "agrees": agrees,
                "reason": KNOWN_DIFFERENCES.get((number, row.label, column)),
            }
        comparison.append({"label": row.label, "learnable_params": total.params, **columns})
    return comparison


def unit_of(table: int) -> tuple[str, int]:
    """In what a table counts multiply-accumulates, and with how many decimals."""
    return ("mflops", 1) if table == 4 else ("gflops", 2)


@cache
def _counted(preset: str) -> Complexity:
    """In the network's home setting."""
    config = preset_config(preset)
    size, classes = config.model.home_size, config.model.home_classes
    return count_network(config.model, config.ge, image_size=size, num_classes=classes, in_channels=3)


def print_table(number: int, format: str) -> None:
    """``table=1`` … ``table=4``: the complexity columns, with differences beyond the printed precision marked."""
    comparison = table_comparison(number)
    if format == "json":
        print(json.dumps({"table": number, "rows": comparison}, ensure_ascii=False))
        return
    unit, places = unit_of(number)
    columns: list[Column[dict[str, Any]]] = [Column("", lambda row: str(row["label"]), right=False)]
    columns += _printed_and_computed(unit, unit.upper().replace("FLOPS", "FLOPs"), places)
    columns += _printed_and_computed("params_m", "#Params", 1)
    columns.append(Column("learnable", lambda row: f"{row['learnable_params'] / 1e6:.2f}"))
    console = Console()
    title = f"Table {number}: {paper()[f'table{number}']['title']}"
    console.print(to_terminal(Table(columns, comparison, title=title), min_width=78))
    for row in comparison:
        for column, decimals in ((unit, places), ("params_m", 1)):
            if not row[column]["agrees"]:
                difference = row[column]["computed"] - row[column]["printed"]
                reason = row[column]["reason"] or "not explained"
                console.print(f"≠ {row['label']}, {column}: {difference:+.{decimals + 1}f}; {reason}", style="dim")


def _printed_and_computed(name: str, heading: str, places: int) -> list[Column[dict[str, Any]]]:
    def computed(row: dict[str, Any]) -> str:
        return f"{row[name]['computed']:.{places + 1}f} {' ' if row[name]['agrees'] else '≠'}"

    return [
        Column(heading, lambda row: f"{row[name]['printed']:.{places}f}"),
        Column("computed", computed, highlight=lambda row: not row[name]["agrees"]),
    ]
