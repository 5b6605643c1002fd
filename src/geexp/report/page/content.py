"""The page's content: tables of the paper, statements, runs with their details, pictures beside runs."""

from base64 import b64encode
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from geexp.analysis.analyse import FOLDER, read_analysis
from geexp.analysis.drawing import variant_style
from geexp.config.errors import DataError
from geexp.report.claims import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Judgement
from geexp.report.comparison import processor
from geexp.report.curves import as_setting
from geexp.report.page.settings import mark
from geexp.report.paper_tables import complexity_notes, heading, paper_table
from geexp.report.report import Report, ReportCell, ReportRow, ReportTable
from geexp.report.runs import FinishedRun
from geexp.report.tables import Column, Table, to_html
from geexp.runs.identity import flat
from geexp.runs.run_files import DETECTIONS, PRECISION_RECALL

# Limits of what the page shows; it states how much there is beyond.
OTHER_PROTOCOLS = 40  # of one table
JUDGEMENTS = 12  # of one statement
PICTURES = 24

SIGNS = {SUPPORTED: "✓", CONTRADICTED: "✗", INCONCLUSIVE: "?"}
_PICTURES = {  # in the folder of a run
    DETECTIONS: "Detections",
    PRECISION_RECALL: "Precision and recall",
    f"{FOLDER}/selectivity.png": "Class selectivity",
    f"{FOLDER}/pruning.png": "Feature importance",
    f"{FOLDER}/receptive_field.png": "Effective receptive field",
    f"{FOLDER}/gates.png": "Gates",
}


# Tables of the paper


@dataclass(frozen=True)
class PageTable:
    """A table of the paper as a section of the page."""

    table: ReportTable

    @property
    def id(self) -> str:
        return f"table-{self.table.name}" if self.table.name.isdigit() else self.table.name

    @property
    def compact(self) -> bool:
        """Whether the difference is in the cell of what was measured, as there are many columns."""
        return len(self.table.columns) > 2

    @property
    def html(self) -> Markup:
        shown = paper_table(self.table)
        columns = [self._drawn(column) for column in shown.columns]
        if self.compact:
            columns = [column for column in columns if not column.key.endswith(".difference")]
        shape = "compact" if self.compact else "" if self.table.complexity_columns else "narrow"
        return to_html(replace(shown, columns=columns), css=f"results {shape}", label=self.table.place)

    def _drawn(self, column: Column[ReportRow]) -> Column[ReportRow]:
        name, _, part = column.key.partition(".")
        if not part:
            return replace(column, html=_marked_label)
        if part == "measured":
            return replace(column, html=lambda row: self._measured(row.cells[name]))
        if part == "difference":
            return replace(column, html=lambda row: _difference(row.cells[name]) or "–")
        if part == "computed":
            return replace(column, html=lambda row: self._computed(column, row))
        return column

    def _measured(self, cell: ReportCell) -> Markup:
        if cell.measured is None:
            link = Markup('<a class="none" href="#{}-commands">not run</a>{}')
            return link.format(self.id, copying(cell.command))
        text = Markup("<b>{}</b>{}<small>({})</small>")
        between = Markup("<br>") if self.compact else " "
        shown = text.format(cell.measured.spread, between, Markup(",<br>").join(cell.measured.about))
        return shown + " " + _difference(cell) if self.compact else shown

    def _computed(self, column: Column[ReportRow], row: ReportRow) -> Markup:
        why = "differs from the paper: see the note"
        link = Markup('<a href="#{0}-notes" title="{1}" aria-label="{1}">≠</a>').format(self.id, why)
        return Markup("{}{}").format(column.text(row).replace("≠", ""), link if column.highlight(row) else "")

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of rows that are not run, or of cells where each has its own training."""
        found = []
        for row in self.table.rows:
            missing = [cell for cell in row.cells.values() if cell.measured is None]
            shared = len({cell.command for cell in row.cells.values()}) == 1
            for cell in missing[:1] if shared else missing:
                what = row.label if shared else f"{row.label}, {heading(cell.column)}"
                found.append((what, cell.command))
        return found

    @property
    def notes(self) -> list[tuple[str, str]]:
        return [(what, signed(note)) for what, note in complexity_notes(self.table)]

    @property
    def others(self) -> list[dict[str, Any]]:
        """Groups of runs of a row's network under another protocol: their figures by column, and what differs."""
        found: dict[str, dict[str, Any]] = {}
        for row in self.table.rows:
            for cell in row.cells.values():
                for group in cell.elsewhere:
                    key = str((row.label, [run.folder for run in group.measured.runs], group.differences))
                    entry = {"label": row.label, "figures": [], "differences": list(group.differences.items())}
                    name = heading(cell.column).replace(", %", "")
                    found.setdefault(key, entry)["figures"].append((name, group.measured))
        return list(found.values())


def _marked_label(row: ReportRow) -> Markup:
    return Markup("{} {}").format(mark(variant_style(row.variant)), row.label)


def _difference(cell: ReportCell) -> Markup:
    if cell.difference is None:
        return Markup("")
    text = Markup('<span class="difference {1}">{0} <small>{1}</small></span>')
    return text.format(signed(f"{cell.difference:+.2f}"), cell.word)


def filled_tables(report: Report) -> dict[Path, list[str]]:
    """The names of the tables in which a run fills a row, by its folder."""
    found: dict[Path, list[str]] = {}
    for table in report.tables:
        runs = (run for cell in table.cells if cell.measured for run in cell.measured.runs)
        for folder in dict.fromkeys(run.folder for run in runs):
            found.setdefault(folder, []).append(table.name)
    return found


def statements_of(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The judgements by statement: the paper's protocol first, then settings with a verdict."""
    by_text: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        by_text.setdefault(judgement.claim.text, []).append(judgement)
    found = []
    for text, (first, *others) in by_text.items():
        others.sort(key=lambda judgement: (judgement.verdict == INCONCLUSIVE, judgement.p is None))
        beyond = Counter(judgement.verdict for judgement in others[JUDGEMENTS - 1 :])
        claim, shown = first.claim, [first, *others[: JUDGEMENTS - 1]]
        counts = [f"{count} {verdict}" for verdict, count in beyond.items()]
        place = {"text": text, "quote": claim.quote, "where": claim.where}
        found.append({**place, "judgements": shown, "beyond": counts})
    return found


# Runs


@dataclass(frozen=True)
class PageRun:
    """A run on the page; ``number`` is that of its details, if they are shown, ``filled`` are the tables it fills."""

    run: FinishedRun
    number: int | None
    filled: Sequence[str]

    @property
    def score(self) -> str:
        return "map" if self.run.detector else "top1"

    @property
    def model(self) -> str:
        return " ".join(filter(None, [self.run.identity.get("model.name"), self.run.identity.get("detector.layout")]))

    @property
    def schedule(self) -> str:
        return ", ".join(filter(None, [self.run.identity.get("schedule.name"), self.run.identity.get("scale")]))

    @property
    def finished(self) -> str:
        time = self.run.result.metrics["last"].get("time")
        return "" if time is None else f"{datetime.fromtimestamp(time):%Y-%m-%d %H:%M}"

    @property
    def label(self) -> Markup:
        label: str | Markup = self.run.label
        if self.number is not None:
            label = Markup('<a href="#run-{}">{}</a>').format(self.number, label)
        return Markup("{} {}").format(mark(self.run.style), label)

    @property
    def summary(self) -> Markup:
        """The heading of its details."""
        run = self.run
        place = f"{self.model}, {run.identity.get('data.name')}, {self.schedule}, seed {run.seed}"
        figure = f"{'mAP ' if run.detector else ''}{run.figure(self.score):.2f} %"
        filled = f", fills {', '.join(self.filled)}" if self.filled else ""
        text = Markup("{} <b>{}</b> {} <small>{}{}</small>")
        return text.format(mark(run.style), run.label, place, figure, filled)

    @property
    def facts(self) -> dict[str, str]:
        """Its results, resources and environment by heading, without those that were not recorded."""
        result, known = self.run.result, self.run.result.environment
        names = {"map": "mAP"} if self.run.detector else {"top1": "top-1 error", "top5": "top-5 error"}
        peaks = result.peak_memory_bytes
        memory = {"of the process": peaks.get("resident"), "on the GPU": peaks.get("gpu")}
        versions = {"Python": known.get("python")} | known.get("versions", {})
        found = {
            **{name: self._last_and_best(metric) for metric, name in names.items()},
            "backbone": (result.backbone or {}).get("loaded"),
            "epochs": result.epochs,
            "time": _duration(result.seconds),
            "finished": self.finished,
            "processor": processor(known) if "processor" in known else None,
            "GPU": known.get("gpu") or "none",
            "devices": _joined(*(f"{key.replace('_', ' ')} {value}" for key, value in result.devices.items())),
            "peak memory": _joined(*(f"{peak / 2**30:.2f} GiB {name}" for name, peak in memory.items() if peak)),
            "feed": result.feed.get("name"),
            "host": _joined(known.get("host"), known.get("platform")),
            "commit": known.get("commit"),
            "versions": _joined(*(f"{package} {number}" for package, number in versions.items() if number)),
        }
        return {name: str(text) for name, text in found.items() if text}

    def _last_and_best(self, metric: str) -> str:
        last, best = self.run.figure(metric), self.run.figure(metric, "best")
        epoch = self.run.result.metrics["best"]["epoch"]
        return f"{last:.2f} % after the last epoch, {best:.2f} % after the best ({epoch})"

    @property
    def configuration(self) -> list[tuple[str, str]]:
        """Titles and texts with a setting per line: what determines the result, and the rest of the configuration."""
        identity = flat(self.run.result.identity)
        rest = {key: value for key, value in flat(self.run.result.config).items() if key not in identity}
        parts = {"What determines the result": identity, "The rest of the configuration": rest}
        return [
            (title, "\n".join(f"{key}={as_setting(value)}" for key, value in leaves.items()))
            for title, leaves in parts.items()
            if leaves
        ]


def runs_table(runs: Sequence[PageRun], *, detectors: bool) -> Table[PageRun]:
    def leaf(key: str) -> Any:
        return lambda one: str(one.run.identity.get(key))

    def figure(metric: str, which: str = "last") -> Any:
        return lambda one: f"{one.run.figure(metric, which):.2f}"

    def count(key: str) -> Any:
        return lambda one: f"{one.run.result.complexity[key] / 1e6:,.3f}"

    score = "map" if detectors else "top1"
    columns = [
        # The name of the variant is there for the filter.
        Column[PageRun](
            "Network", lambda one: one.run.label, lambda one: f"{one.run.label} {one.run.variant}", right=False,
            css="label", html=lambda one: one.label,
        ),
        Column("Model", lambda one: one.model, right=False),
        Column("Data", leaf("data.name"), right=False),
        Column("Schedule", lambda one: one.schedule, right=False),
        Column("Seed", lambda one: str(one.run.seed)),
        Column("mAP" if detectors else "Top-1", figure(score)),
        Column("Best", figure(score, "best")),
        *([] if detectors else [Column("Top-5", figure("top5"))]),
        Column("Params, M", count("params")),
        *([] if detectors else [Column("MACs, M", count("macs"))]),
        Column("Time", lambda one: _duration(one.run.result.seconds), lambda one: one.run.result.seconds),
        Column("Finished", lambda one: one.finished[:10], right=False, css="date"),
        Column("Fills", lambda one: ", ".join(one.filled), right=False),
    ]  # fmt: skip
    return Table(columns, [one for one in runs if one.run.detector == detectors])


def in_order(runs: Sequence[FinishedRun], first: Container[Path]) -> list[FinishedRun]:
    """The order of the page: those in ``first``, then by model, data, schedule, variant and seed."""

    def place(run: FinishedRun) -> tuple[Any, ...]:
        names = tuple(str(run.identity.get(f"{group}.name")) for group in ("model", "data", "schedule"))
        return run.folder not in first, names, run.place, run.seed, str(run.folder)

    return sorted(runs, key=place)


# Pictures beside runs: of analyses, and of detectors' results


@dataclass(frozen=True)
class Picture:
    """``source`` is the picture itself as an address; ``facts`` name its networks and images."""

    title: str
    facts: str
    command: str
    source: str


def pictures_of(runs: Sequence[FinishedRun]) -> tuple[list[Picture], int]:
    """The pictures that can be read, run by run, and how many more there are."""
    files = [(run, run.folder / name) for run in runs for name in _PICTURES]
    there = [(run, file) for run, file in files if file.is_file()]
    shown = []
    for run, file in there[:PICTURES]:
        try:
            shown.append(_of_analysis(file) if file.parent.name == FOLDER else _of_detector(run, file))
        except (DataError, OSError):
            continue
    return shown, max(0, len(there) - PICTURES)


def _of_analysis(file: Path) -> Picture:
    analysis = read_analysis(file.parent, file.stem)
    networks = ", ".join(f"{one.label} (epoch {one.epoch})" for one in analysis.networks)
    first = analysis.networks[0]
    split = {"val": "validation", "train": "training"}.get(first.split, first.split)
    return Picture(
        title=f"{_PICTURES[f'{FOLDER}/{file.name}']}: {first.model}, {first.identity['data.name']}",
        facts=f"{networks}; {first.images:,} {split} images",
        command=str(analysis.made.get("command", "")),
        source=address(file, "png"),
    )


def _of_detector(run: FinishedRun, file: Path) -> Picture:
    predict = f"python -m geexp.detect mode=predict run={as_given(run.folder)}"
    return Picture(
        title=f"{_PICTURES[file.name]}: {run.identity['model.name']}, {run.identity['data.name']}",
        facts=f"{run.label}, {run.identity['detector.layout']}, seed {run.seed}; mAP {run.figure('map'):.2f} %",
        command=predict if file.name == DETECTIONS else run.result.command,
        source=address(file, "png"),
    )


def address(picture: Path, kind: str) -> str:
    """The picture as a ``data:`` address."""
    return f"data:image/{kind};base64,{b64encode(picture.read_bytes()).decode()}"


# Words


def copying(command: str) -> Markup:
    """A button that copies a command."""
    return Markup(
        '<button type="button" class="copy" data-copy="{0}" aria-label="Copy the command: {0}" '
        'title="Copy the command"><svg viewBox="0 0 16 16" aria-hidden="true"><use href="#i-copy"/></svg></button>'
    ).format(command)


def signed(text: str) -> str:
    """With a true minus sign."""
    return text.replace("-", "−")


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def as_given(folder: Path, root: Path | None = None) -> str:
    """A folder relative to ``root``, or else to the working directory, if it lies there."""
    roots = [one for one in (root, Path.cwd()) if one is not None and folder.is_relative_to(one)]
    return str(folder.relative_to(roots[0])) if roots else str(folder)


def _joined(*parts: Any) -> str:
    return " · ".join(str(part) for part in parts if part)


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
