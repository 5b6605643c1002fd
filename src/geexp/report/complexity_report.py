"""Complexity on the terminal or as JSON: one network by stage, or a table's columns, computed beside printed."""

import json

from geexp.backbones.complexity import Part
from geexp.config.process import PlainConsole
from geexp.config.schema import ComplexityConfig
from geexp.report.measured import Runs
from geexp.report.paper_tables import LABEL, complexity_columns, complexity_notes
from geexp.report.report import report_table
from geexp.report.tables import Column, Table, to_terminal
from geexp.runs.identity import ge_slug
from geexp.training.network import count_network


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
    console = PlainConsole()
    rows = [*complexity.parts.items(), ("total", complexity.total)]
    console.print(to_terminal(Table(columns, rows, title=title, total=True)))
    console.print("* as the paper counts #Params", style="dim")


def print_table(number: int, format: str) -> None:
    """``table=1`` … ``table=4``: the complexity columns, with differences beyond the printed precision marked."""
    table = report_table(str(number), Runs([]))
    if format == "json":
        rows = [{"label": row.label, "learnable_params": row.learnable_params, **row.complexity} for row in table.rows]
        print(json.dumps({"table": number, "rows": rows}))
        return
    columns = [LABEL]
    for name in table.complexity_columns:
        columns += complexity_columns(name)
    columns.append(Column("learnable, M", lambda row: f"{row.learnable_params / 1e6:.2f}"))
    console = PlainConsole()
    console.print(to_terminal(Table(columns, table.rows, title=f"{table.full_title}; printed and computed")))
    for what, note in complexity_notes(table):
        console.print(f"≠ {what}: {note}", style="dim")
