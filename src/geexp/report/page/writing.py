"""Template, style, scripts and data put together into one file."""

import json
import platform
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import geexp
from geexp.report.claims import LEVEL, MARGIN
from geexp.report.curves import as_setting
from geexp.report.differences import NOTE
from geexp.report.figures import Figure
from geexp.report.page.content import (
    OTHER_PROTOCOLS,
    SIGNS,
    PageRun,
    PageTable,
    address,
    as_given,
    copying,
    filled_tables,
    in_order,
    p_value,
    pictures_of,
    runs_table,
    statements_of,
)
from geexp.report.page.settings import SETTINGS, settings_of
from geexp.report.report import Report
from geexp.report.runs import LeftOut
from geexp.report.tables import Column, Table, to_html
from geexp.runs.atomic_write import atomic_write

DETAILED_RUNS = 200  # the page states how many there are beyond

_FILES = Path(__file__).parent


def write_page(report: Report, path: Path, *, figures: Sequence[Figure] = (), made: datetime | None = None) -> None:
    """Write the page to ``path``, with the figures that were drawn; ``made`` is the time on it, by default now."""
    with atomic_write(path) as file:
        file.write(page(report, figures=figures, made=made).encode(errors="replace"))


def page(report: Report, *, figures: Sequence[Figure] = (), made: datetime | None = None) -> str:
    """The page as text. All strings from files are escaped, and only the page's own scripts can run."""
    filled = filled_tables(report)
    order = in_order(report.runs, filled)
    numbers = {run.folder: number for number, run in enumerate(order[:DETAILED_RUNS], 1)}
    detailed = [PageRun(run, numbers[run.folder], filled.get(run.folder, ())) for run in order[:DETAILED_RUNS]]
    rows = [PageRun(run, numbers.get(run.folder), filled.get(run.folder, ())) for run in in_order(order, {})]
    settings, undrawn = settings_of([run for run in report.runs if not run.detector], filled)
    pictures, pictures_left = pictures_of(order)
    scripts = [(_FILES / "page.js").read_text(encoding="utf-8")]
    if settings:
        from plotly.offline import get_plotlyjs  # five megabytes, only for pages with curves

        scripts.append(get_plotlyjs())
    software = [f"geexp {geexp.__version__}", f"Python {platform.python_version()}"]
    context = {
        "made": (made or datetime.now()).astimezone(),
        "folder": as_given(report.folder),
        "place": lambda folder: as_given(folder, report.folder),
        "policy": _policy(scripts),
        "scripts": [Markup(text) for text in scripts],
        "style": Markup((_FILES / "page.css").read_text(encoding="utf-8")),
        "verdicts": Counter(judgement.verdict for judgement in report.judgements),
        "statements": statements_of(report.judgements),
        "comparisons": [one for one in report.comparisons if one.repeated][:SETTINGS],
        "differences_note": NOTE,
        "tables": [PageTable(table) for table in report.tables],
        "figures": [(figure, _picture(figure), [("", command) for command in figure.missing]) for figure in figures],
        "pictures": pictures,
        "pictures_left": pictures_left,
        "settings": settings,
        "undrawn": undrawn,
        "curves": _json([setting.drawing for setting in settings]),
        "runs": [row for row in rows if not row.run.detector],
        "detectors": [row for row in rows if row.run.detector],
        "details": detailed,
        "left_out": _left_out(report),
        "software": software + [f"plotly {version('plotly')}"] * bool(settings),
    }
    return _environment().get_template("page.html.j2").render(report=report, **context)


def _left_out(report: Report) -> Table[LeftOut]:
    def folder(left: LeftOut) -> str:
        return as_given(left.folder, report.folder)

    code = Markup("<code>{}</code>")
    columns = [
        Column("Folder", folder, right=False, html=lambda left: code.format(folder(left))),
        Column[LeftOut]("Reason", lambda left: left.reason, right=False),
    ]
    return Table(columns, report.left_out)


def _picture(figure: Figure) -> str | None:
    drawn = [file for file in figure.files if file.suffix == ".svg"]
    return address(drawn[0], "svg+xml") if drawn else None


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(setting=as_setting, p=p_value, copying=copying)
    limits = {"margin": MARGIN, "level": LEVEL, "most_settings": SETTINGS, "most_others": OTHER_PROTOCOLS}
    environment.globals |= {"html": to_html, "runs_table": runs_table, "signs": SIGNS, **limits}
    return environment


def _policy(scripts: Sequence[str]) -> str:
    """The content security policy: only these scripts run, and nothing is fetched."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(data: Any) -> Markup:
    """JSON that can stand inside a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
