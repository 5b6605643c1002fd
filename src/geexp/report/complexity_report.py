"""Complexity on the terminal or as JSON: one network by stage, or a table's columns, computed beside printed."""

import json
from functools import cache
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from geexp.backbones import build_model
from geexp.backbones.complexity import Complexity, count_complexity
from geexp.config.schema import ComplexityConfig
from geexp.registry import options
from geexp.report.numbers import network_of, paper, table_rows
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
    if config.format == "json":
        print(json.dumps({"model": config.model.name, "ge": ge_slug(config.ge, config.model), **complexity.as_dict()}))
        return
    table = Table(title=f"{config.model.name}, GE {ge_slug(config.ge, config.model)}, {size}x{size}, {classes} classes")
    table.add_column("part")
    for heading in ("parameters", "with BN statistics*", "multiply-accumulates"):
        table.add_column(heading, justify="right")
    rows = [*complexity.parts.items(), ("total", complexity.total)]
    for name, part in rows:
        if name == "total":
            table.add_section()
        table.add_row(name, f"{part.params:,}", f"{part.params_with_bn_statistics:,}", f"{part.macs:,}")
    console = Console()
    console.print(table)
    console.print("* as the paper counts #Params", style="dim")


@cache
def _counted(**network: Any) -> Complexity:
    """Of networks that stand in several tables once only."""
    home = options("model")[network["name"]]
    with torch.device("meta"):  # shapes without memory or initialisation
        model = build_model(**network)
    return count_complexity(model, (3, home["home_size"], home["home_size"]))


def table_comparison(number: int) -> list[dict[str, Any]]:
    """For each row of Table 1, 2, 3 or 4: printed and computed complexity, and whether they agree.

    Multiply-accumulates agree if they are equal when rounded as printed, parameters if they are within 0.1 M.
    """
    unit = "mflops" if number == 4 else "gflops"
    comparison = []
    for row in table_rows(number):
        total = _counted(**{key: tuple(v) if isinstance(v, list) else v for key, v in network_of(row).items()}).total
        macs = total.macs / (1e6 if unit == "mflops" else 1e9)
        params = total.params_with_bn_statistics / 1e6
        columns = {}
        for column, computed, agrees in (
            (unit, macs, round(macs, 1 if unit == "mflops" else 2) == row[unit]),
            ("params_m", params, abs(params - row["params_m"]) < 0.1),  # the paper does not always round
        ):
            columns[column] = {
                "printed": row[column],
                "computed": computed,
                "agrees": agrees,
                "reason": KNOWN_DIFFERENCES.get((number, row["label"], column)),
            }
        comparison.append({"label": row["label"], "learnable_params": total.params, **columns})
    return comparison


def print_table(number: int, format: str) -> None:
    """``table=1`` … ``table=4``: the complexity columns, with differences beyond the printed precision marked."""
    comparison = table_comparison(number)
    if format == "json":
        print(json.dumps({"table": number, "rows": comparison}, ensure_ascii=False))
        return
    unit = "mflops" if number == 4 else "gflops"
    decimals = 1 if unit == "mflops" else 2
    table = Table(title=f"Table {number}: {paper()[f'table{number}']['title']}", min_width=78)
    table.add_column("", min_width=23)
    for heading in (unit.upper().replace("FLOPS", "FLOPs"), "computed", "#Params", "computed", "learnable"):
        table.add_column(heading, justify="right")
    notes = []
    for row in comparison:
        cells = [row["label"]]
        for column, places in ((unit, decimals), ("params_m", 1)):
            cell = row[column]
            text = f"{cell['computed']:.{places + 1}f}"
            if cell["agrees"]:
                text += "  "
            else:
                text = f"[yellow]{text} ≠[/]"
                difference = cell["computed"] - cell["printed"]
                notes.append(
                    f"≠ {row['label']}, {column}: {difference:+.{places + 1}f}; {cell['reason'] or 'not explained'}"
                )
            cells += [f"{cell['printed']:.{places}f}", text]
        table.add_row(*cells, f"{row['learnable_params'] / 1e6:.2f}")
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, style="dim")
