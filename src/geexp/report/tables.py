"""A model of tables, with renderers for terminal, Markdown, CSV, LaTeX and HTML."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

T = TypeVar("T")


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table whose rows are of type ``T``.

    ``text`` is the shown cell, ``value`` the number or word behind it, for sorting and for CSV. ``html`` replaces the
    text in HTML, where ``css`` are the classes of the cells and ``label`` makes a cell the heading of its row.
    ``highlight`` marks a cell on a terminal and in HTML. ``group`` is a heading above several columns: on a terminal
    they share a cell, and Markdown and LaTeX put it in front of each heading.
    """

    heading: str
    text: Callable[[T], str]
    value: Callable[[T], Any] | None = None
    key: str = ""
    right: bool = True
    group: str = ""
    css: str = ""
    html: Callable[[T], str] | None = None
    highlight: Callable[[T], bool] = lambda row: False


@dataclass(frozen=True)
class Table(Generic[T]):
    """Rows and how they are shown. ``total`` rules off the last row on a terminal."""

    columns: Sequence[Column[T]]
    rows: Sequence[T]
    title: str = ""
    total: bool = False


def of_dicts(keys: Sequence[str], rows: Sequence[dict[str, Any]]) -> Table[dict[str, Any]]:
    """A table of dictionaries; a row may lack some keys."""

    def column(key: str) -> Column[dict[str, Any]]:
        value: Callable[[dict[str, Any]], Any] = lambda row: row.get(key)  # noqa: E731
        return Column(key, lambda row: "" if value(row) is None else str(value(row)), value, right=False)

    return Table([column(key) for key in keys], rows)


def to_terminal(table: Table[Any]) -> "RichTable":
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=table.title, title_justify="left")
    groups = _grouped(table.columns)
    for group in groups:
        heading = group[0].group or group[0].heading
        justify: Literal["left", "right"] = "right" if group[0].right else "left"
        shown.add_column(heading, justify=justify, overflow="fold", no_wrap=group[0].css == "label")
    for row in table.rows:
        if table.total and row is table.rows[-1]:
            shown.add_section()
        shown.add_row(*(Text("  ").join(_shown(group, row)) for group in groups))
    return shown


def _shown(group: Sequence[Column[Any]], row: Any) -> "Iterator[Text]":
    from rich.text import Text

    for column in group:
        if text := column.text(row):
            yield Text(text, "yellow" if column.highlight(row) else "")


def _grouped(columns: Sequence[Column[Any]]) -> list[list[Column[Any]]]:
    """Adjacent columns of one group together, each other column by itself."""
    found: list[list[Column[Any]]] = []
    for column in columns:
        if column.group and found and found[-1][0].group == column.group:
            found[-1].append(column)
        else:
            found.append([column])
    return found


def _flat_heading(column: Column[Any]) -> str:
    return f"{column.group}: {column.heading}" if column.group else column.heading


def to_markdown(table: Table[Any]) -> str:
    rules = ("---:" if column.right else "---" for column in table.columns)
    lines = [_line(map(_flat_heading, table.columns)), f"|{'|'.join(rules)}|"]
    lines += [_line(column.text(row) for column in table.columns) for row in table.rows]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def to_csv(table: Table[Any]) -> str:
    """The columns' keys and values."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.key or column.heading for column in table.columns)
    for row in table.rows:
        writer.writerow(column.value(row) if column.value else column.text(row) for column in table.columns)
    return text.getvalue()


_LATEX = {"\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}"}
_LATEX |= {"θ": r"$\theta$", "⁻": r"$^{-}$", "⁺": r"$^{+}$", "±": r"$\pm$", "Δ": r"$\Delta$", "≠": r"$\neq$"}


def to_latex(table: Table[Any]) -> str:
    """For ``\\usepackage{booktabs}``; pdfLaTeX is enough."""
    head, *rows = [
        " & ".join(_in_latex(text) for text in cells) + r" \\"
        for cells in [
            [*map(_flat_heading, table.columns)],
            *([c.text(row) for c in table.columns] for row in table.rows),
        ]
    ]
    aligned = "".join("r" if column.right else "l" for column in table.columns)
    lines = [r"\begin{table}", rf"\caption{{{_in_latex(table.title)}}}", rf"\begin{{tabular}}{{{aligned}}}"]
    lines += [r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def to_html(table: Table[Any], *, css: str = "", label: str = "", element_id: str = "") -> Markup:
    """Sortable by the page's script, in a box that scrolls. Texts are escaped, as is ``html`` that is no ``Markup``."""
    name = Markup(' id="{}"').format(element_id) if element_id else ""
    parts = [
        Markup('<div class="scroll" role="region" tabindex="0" aria-label="{}">\n').format(label or table.title),
        Markup('<table class="{}" data-sortable{}>\n<thead>\n').format(css, name),
    ]
    if any(column.group for column in table.columns):
        parts.append(Markup("<tr>{}</tr>\n").format(Markup("").join(map(_group_heading, _grouped(table.columns)))))
    heads = (
        Markup('<th scope="col" aria-sort="none" data-column="{}" class="{}"><button type="button">{}</button></th>')
        .format(place, _classes(column), column.heading)
        for place, column in enumerate(table.columns)
    )  # fmt: skip
    parts.append(Markup("<tr>{}</tr>\n</thead>\n<tbody>\n").format(Markup("").join(heads)))
    rows = (Markup("").join(_cell(column, row) for column in table.columns) for row in table.rows)
    parts += map(Markup("<tr>{}</tr>\n").format, rows)
    return Markup("").join([*parts, Markup("</tbody>\n</table>\n</div>\n")])


def _group_heading(group: Sequence[Column[Any]]) -> Markup:
    if not group[0].group:
        return Markup("<th></th>")
    heading = Markup('<th scope="colgroup" colspan="{}" class="group"><span>{}</span></th>')
    return heading.format(len(group), group[0].group)


def _cell(column: Column[Any], row: Any) -> Markup:
    found = column.value(row) if column.value is not None else None
    value = Markup(' data-value="{}"').format("" if found is None else found) if column.value is not None else ""
    content = escape(column.html(row) if column.html else column.text(row))
    if column.css == "label":
        return Markup('<th scope="row"{}>{}</th>').format(value, content)
    marked = " differs" if column.highlight(row) else ""
    return Markup('<td class="{}"{}>{}</td>').format(_classes(column) + marked, value, content)


def _classes(column: Column[Any]) -> str:
    return " ".join(filter(None, ["number" if column.right else "", column.css]))
