"""What a sweep is going to do, before it does anything: rows, states, what is shared, devices, commands."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from geexp.config.errors import UserError
from geexp.data.presence import require_data
from geexp.launching.jobs import SweepJob, shell
from geexp.launching.progress import DONE, FAILED, NEW, RUNNING, UNFINISHED, Progress, progress_of
from geexp.runs.identity import ge_slug
from geexp.runs.weights_file import require_backbone


@dataclass
class Row:
    """A job of the sweep. ``same_as`` is the earlier row that is the same training, if there is one."""

    job: SweepJob
    label: str
    progress: Progress
    same_as: "Row | None" = None

    @property
    def to_train(self) -> bool:
        return self.same_as is None and (self.progress.state != DONE or self.job.config.force)


def plan(jobs: Sequence[SweepJob]) -> list[Row]:
    """A row for every job, in the order of the sweep.

    Raises:
        ConfigError: if a folder holds a run of another configuration.
    """
    first: dict[object, Row] = {}
    rows = []
    for job, label in zip(jobs, labels(jobs), strict=True):
        row = Row(job, label, progress_of(job), same_as=first.get(job.folder))
        first.setdefault(job.folder, row)
        rows.append(row)
    return rows


def labels(jobs: Sequence[SweepJob]) -> list[str]:
    """What sets each job apart from the others: its experiment by name, other settings as they are typed."""
    said = [[word for word in job.overrides if not word.startswith(("hydra.", "hydra/"))] for job in jobs]
    of_all = {word for word, times in Counter(word for words in said for word in words).items() if times == len(jobs)}
    found = []
    for job, words in zip(jobs, said, strict=True):
        own = [word.removeprefix("experiment=") for word in words if word not in of_all]
        found.append(" ".join(own) or f"{job.config.model.name} {ge_slug(job.config.ge, job.config.model)}")
    return found


def require_all_data(rows: Sequence[Row]) -> None:
    """Raise ``ConfigError`` if what a job that is to be trained needs is not there: images, a detector's backbone."""
    for row in rows:
        if row.to_train:
            try:
                require_data(row.job.config.data, row.job.config.feed)
                require_backbone(row.job.config)
            except UserError as error:
                raise type(error)(f"{row.label}: {error}") from error


def summary(rows: Sequence[Row]) -> str:
    """``7 rows, 6 distinct trainings: 2 done, 4 to train (1 goes on)``."""
    own = [row for row in rows if row.same_as is None]
    states = Counter(row.progress.state for row in own)
    todo = sum(row.to_train for row in own)
    parts = [f"{len(own) - todo} done"] if todo < len(own) else []
    if todo:
        kinds = [f"{states[state]} {word}" for state, word in _IN_WORDS.items() if state != NEW and states[state]]
        parts.append(f"{todo} to train" + (f" ({', '.join(kinds)})" if kinds else ""))
    counted = f"{len(own)} {'training' if len(own) == 1 else 'trainings'}"
    if len(own) < len(rows):
        counted = f"{len(rows)} rows, {len(own)} distinct {'training' if len(own) == 1 else 'trainings'}"
    return f"{counted}: {', '.join(parts)}"


_IN_WORDS = {NEW: "new", RUNNING: "running", UNFINISHED: "to go on with", FAILED: "failed before"}


def show_plan(rows: Sequence[Row], console: Console, *, commands: bool = False) -> None:
    """Print the plan as a table, and below it, if wanted, the full command of every job that is a row of its own."""
    table = Table()
    for heading, justify in (("", "right"), ("row", "left"), ("state", "left"), ("devices", "right")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        trainer = row.job.config.trainer
        devices = f"{trainer.nodes} x {trainer.devices}" if trainer.nodes > 1 else str(trainer.devices)
        table.add_row(str(row.job.number), row.label, in_words(row), devices)
    console.print(table)
    console.print(summary(rows))
    if commands:
        for row in rows:
            about = f"\n# {row.job.number}: {row.label} ({in_words(row)}), {row.job.folder}"
            console.print(about, highlight=False, markup=False, soft_wrap=True)
            console.print(shell(row.job.command()), highlight=False, markup=False, soft_wrap=True)


def in_words(row: Row) -> str:
    """What the sweep will do with the row, and why."""
    if row.same_as is not None:
        return f"the same as {row.same_as.label}"
    progress = row.progress
    at = f" after epoch {progress.epoch}" if progress.epoch else ""
    why = f" ({progress.reason})" if progress.reason else ""
    if row.job.config.force and progress.state != RUNNING:
        return "new: force=true" if progress.state != NEW else "new"
    trained_as = progress.reason if progress.state == DONE and progress.reason not in row.label.split() else ""
    return {
        NEW: "new",
        DONE: f"done, as {trained_as}" if trained_as else "done",
        RUNNING: f"trained by {progress.where}; waits for it",
        UNFINISHED: f"goes on{at}{why}",
        FAILED: f"again{at}{why}",
    }[progress.state]
