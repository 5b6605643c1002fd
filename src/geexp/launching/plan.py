"""The progress of a sweep's runs and the plan of the sweep: rows, states, duplicates, devices, commands."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from geexp.config.errors import UserError
from geexp.config.protocol import planned_epochs, stretched
from geexp.config.schema import TrainConfig
from geexp.data.parallel import with_bar
from geexp.launching.jobs import Records, SweepJob, require_inputs, require_one_data_set, require_same_data, shell
from geexp.runs.identity import ge_slug
from geexp.runs.metrics import score_of
from geexp.runs.run import Run
from geexp.runs.status import Status

NEW, RUNNING, UNFINISHED, FAILED, DONE = "new", "running", "unfinished", "failed", "done"


@dataclass(frozen=True)
class Progress:
    """The state of a run (one of the five above) with its reason, and the progress of training.

    ``epoch`` counts finished epochs; ``epochs`` is None if the schedule counts iterations. ``error`` and ``best`` are
    top-1 errors on the validation images in percent (mAP for a detector), ``eta`` the seconds left at the speed of the
    last epochs, ``where`` the process or devices of a running job. ``seen`` changes while training advances.
    """

    state: str
    reason: str = ""
    epoch: int = 0
    epochs: int | None = None
    error: float | None = None
    best: float | None = None
    eta: float | None = None
    where: str = ""
    seen: tuple[Any, ...] = ()

    def briefly(self) -> str:
        """The state in one or two words."""
        return {NEW: "not started", UNFINISHED: "stopped"}.get(self.state, self.state)

    def __str__(self) -> str:
        """The state and the reason."""
        at = f" after epoch {self.epoch}" if self.epoch and self.state in (UNFINISHED, FAILED) else ""
        return f"{self.briefly()}{at}" + (f": {self.reason}" if self.reason and self.state != DONE else "")


def progress_of(job: SweepJob) -> Progress:
    """The progress of a job's run, read from its folder.

    Raises:
        ConfigError: if the folder holds a result with another configuration and ``force`` is not set.
    """
    run = Run(job.folder)
    status, history = run.status, run.history()
    score = score_of(history[-1] if history else {})
    errors = [row[score.key] for row in history if row.get(score.key) is not None]
    reached: dict[str, Any] = {
        "epoch": len(history),
        "epochs": planned_epochs(job.config),
        "error": errors[-1] if errors else None,
        "best": score.best(errors) if errors else None,
    }
    if run.locked:
        where = f"process {status.pid} on {status.host}" if status is not None else "another process"
        seen = (status and status.batches, status and status.step, len(history))
        return Progress(RUNNING, **reached, eta=_eta(job.config, history, status), where=where, seen=seen)
    if run.result is not None:
        if not job.config.force:
            job.require_same(run.result.identity)
        experiment = re.search(r"experiment=(\w+)", run.result.command)
        return Progress(DONE, experiment[1] if experiment else "", **reached)
    reason = (status and status.reason) or ""
    if status is not None and status.state in ("failed", "diverged"):
        return Progress(FAILED, reason, **reached)
    return Progress(UNFINISHED, reason, **reached) if run.resumable else Progress(NEW)


def progress_now(job: SweepJob) -> Progress:
    """``progress_of`` while a sweep runs: a result with another configuration fails only its own job."""
    try:
        return progress_of(job)
    except UserError as error:
        return Progress(FAILED, str(error))


def _eta(config: TrainConfig, history: list[dict[str, Any]], status: Status | None) -> float | None:
    if not history:
        return None
    step, seconds = history[-1]["step"], [row["seconds"] for row in history[-3:]]
    steps_per_epoch = step / len(history)
    epochs, iterations = planned_epochs(config), stretched(config.schedule).iterations
    ends = [epochs * steps_per_epoch] if epochs else []
    ends += [iterations] if iterations else []
    left = min(ends) - max(step, (status and status.step) or 0)
    return max(0.0, left / steps_per_epoch * sum(seconds) / len(seconds))


@dataclass
class Row:
    """A job of the sweep. ``same_as`` is an earlier row with the same run, if there is one."""

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
        ConfigError: if a folder holds a run with another configuration.
    """
    first: dict[object, Row] = {}
    rows = []
    named = zip(jobs, labels(jobs), strict=True)
    for job, label in with_bar(named, "reading the runs of the jobs", len(jobs)):
        row = Row(job, label, progress_of(job), same_as=first.get(job.folder))
        first.setdefault(job.folder, row)
        rows.append(row)
    return rows


def labels(jobs: Sequence[SweepJob]) -> list[str]:
    """Labels that distinguish the jobs: the experiment's name, and other overrides as typed."""
    typed = [[word for word in job.overrides if not word.startswith(("hydra.", "hydra/"))] for job in jobs]
    counts = Counter(word for words in typed for word in words)
    shared = {word for word, count in counts.items() if count == len(jobs)}
    found = []
    for job, words in zip(jobs, typed, strict=True):
        own = [word.removeprefix("experiment=") for word in words if word not in shared]
        found.append(" ".join(own) or f"{job.config.model.name} {ge_slug(job.config.ge, job.config.model)}")
    return found


def require_all_data(rows: Sequence[Row]) -> None:
    """Raise ``UserError`` if a job to be trained lacks its images or its initial weights, or if a run, finished or
    stopped, is of other data."""
    known: Records = {}
    for row in rows:
        try:
            if row.to_train:
                require_inputs(row.job.config)
            if row.same_as is not None:
                require_one_data_set(row.job, row.same_as.job, known)
            elif row.progress.state != RUNNING:
                require_same_data(row.job, known)
        except UserError as error:
            raise type(error)(f"{row.label}: {error}") from error


def summary(rows: Sequence[Row]) -> str:
    """``7 rows, 6 distinct trainings: 2 done, 4 to train (1 to resume)``."""
    own = [row for row in rows if row.same_as is None]
    states = Counter(row.progress.state for row in own)
    todo = sum(row.to_train for row in own)
    parts = [f"{len(own) - todo} done"] if todo < len(own) else []
    if todo:
        kinds = [f"{states[state]} {word}" for state, word in _TO_TRAIN.items() if states[state]]
        parts.append(f"{todo} to train" + (f" ({', '.join(kinds)})" if kinds else ""))
    counted = f"{len(own)} {'training' if len(own) == 1 else 'trainings'}"
    if len(own) < len(rows):
        counted = f"{len(rows)} rows, {len(own)} distinct {'training' if len(own) == 1 else 'trainings'}"
    return f"{counted}: {', '.join(parts)}"


_TO_TRAIN = {RUNNING: "running", UNFINISHED: "to resume", FAILED: "failed before"}


def show_plan(rows: Sequence[Row], console: Console, *, commands: bool = False) -> None:
    """Print the plan as a table and, with ``commands``, the full command of every job below it."""
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
            console.print(about, highlight=False, soft_wrap=True)
            console.print(shell(row.job.command()), highlight=False, soft_wrap=True)


def in_words(row: Row) -> str:
    """A description of what the sweep will do with the row, and why."""
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
        RUNNING: f"being trained by {progress.where}; the sweep waits for it",
        UNFINISHED: f"resumes{at}{why}",
        FAILED: f"again{at}{why}",
    }[progress.state]
