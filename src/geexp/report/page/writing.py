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
from geexp.report.figures import Figure
from geexp.report.page import words
from geexp.report.page.analyses import pictures_of
from geexp.report.page.curves import SETTINGS, settings_of
from geexp.report.page.marks import colours, mark, symbols
from geexp.report.page.runs import configuration_of, details_first, facts_of, row_of
from geexp.report.page.tables import SIGNS, filled_tables, statements_of, table_of
from geexp.report.report import Report
from geexp.runs.atomic_write import atomic_write

# What the page shows; of what is beyond, it says how much that is.
DETAILED_RUNS = 200
LEFT_OUT = 500

_FILES = Path(__file__).parent


def write_page(report: Report, path: Path, *, figures: Sequence[Figure] = (), made: datetime | None = None) -> None:
    """Write the page to ``path``, with the figures that were drawn; ``made`` is the time on it, by default now."""
    with atomic_write(path) as file:
        file.write(page(report, figures=figures, made=made).encode(errors="replace"))


def page(report: Report, *, figures: Sequence[Figure] = (), made: datetime | None = None) -> str:
    """The page as text. Whatever comes from files is escaped, and no script but its own can run in it."""
    filled = filled_tables(report)
    order = details_first(report.runs, filled)
    numbers = {run.folder: number for number, run in enumerate(order[:DETAILED_RUNS], 1)}
    settings, undrawn = settings_of([run for run in report.runs if not run.detector], filled)
    analyses, analyses_left = pictures_of(order)
    rows = [row_of(run, numbers.get(run.folder), filled.get(run.folder, ())) for run in details_first(order, {})]
    scripts = [(_FILES / "page.js").read_text(encoding="utf-8")]
    if settings:
        from plotly.offline import get_plotlyjs  # five megabytes, for who has curves only

        scripts.append(get_plotlyjs())
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            made=(made or datetime.now()).astimezone(),
            folder=words.as_given(report.folder),
            place=lambda folder: words.below(folder, report.folder),
            policy=_policy(scripts),
            scripts=[Markup(text) for text in scripts],
            style=Markup(colours() + (_FILES / "page.css").read_text(encoding="utf-8")),
            symbols=symbols(),
            mark=mark,
            verdicts=Counter(judgement.verdict for judgement in report.judgements),
            signs=SIGNS,
            statements=statements_of(report.judgements),
            tables=[table_of(table) for table in report.tables],
            figures=[(figure, _picture(figure)) for figure in figures],
            analyses=analyses,
            analyses_left=analyses_left,
            settings=settings,
            undrawn=undrawn,
            most_settings=SETTINGS,
            curves=_json([setting.drawing for setting in settings]),
            runs=[row for row in rows if not row["detector"]],
            detectors=[row for row in rows if row["detector"]],
            details=[
                (row_of(run, number, filled.get(run.folder, ())), run, facts_of(run), configuration_of(run))
                for number, run in enumerate(order[:DETAILED_RUNS], 1)
            ],
            left_out_shown=LEFT_OUT,
            software=[f"geexp {geexp.__version__}", f"Python {platform.python_version()}"]
            + [f"plotly {version('plotly')}"] * bool(settings),
            margin=MARGIN,
            level=LEVEL,
        )
    )


def _picture(figure: Figure) -> str | None:
    """The figure inside an address, which needs no file beside the page."""
    drawn = [file for file in figure.files if file.suffix == ".svg"]
    return f"data:image/svg+xml;base64,{b64encode(drawn[0].read_bytes()).decode()}" if drawn else None


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": words.value, "p": words.p, "spread": words.spread, "signed": words.signed}
    return environment


def _policy(scripts: Sequence[str]) -> str:
    """What a browser may do for this page: run these very scripts, and fetch nothing."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(data: Any) -> Markup:
    """JSON that can stand inside a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
