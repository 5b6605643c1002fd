"""A sweep from its jobs to its table: plan, launch, report how each one ended."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from geexp.config.errors import ConfigError, TrainingError
from geexp.config.extras import missing
from geexp.launching import slurm
from geexp.launching.jobs import SweepJob
from geexp.launching.live_table import LiveTable, table_of
from geexp.launching.plan import DONE, FAILED, RUNNING, Progress, Row, progress_now, show_plan
from geexp.launching.processes import CONSOLE, Devices

Train = Callable[[Sequence[Row], LiveTable], None]


class SweepError(TrainingError):
    """Jobs of a sweep have failed; the others are done."""


def run_sweep(rows: Sequence[Row], train: Train) -> None:
    """Show the plan, train its jobs with ``train``, and show how each one ended.

    Raises:
        KeyboardInterrupt, SystemExit: after signals, when nothing runs any more and the finished runs are shown.
    """
    console = Console(stderr=True)
    show_plan(rows, console)
    try:
        if any(row.to_train for row in rows):
            train(rows, LiveTable(rows, console))
            console.print(table_of(rows))
    finally:
        _compare(rows)


def failures(rows: Sequence[Row]) -> SweepError | None:
    """The error that ends a sweep in which not every job is done."""
    failed = [row for row in rows if row.same_as is None and row.progress.state != DONE]
    if not failed:
        return None
    return SweepError(
        f"{len(failed)} of {len(rows)} jobs {'is' if len(failed) == 1 else 'are'} not done; the same command tries "
        f"again, and resumes where there is a checkpoint.{''.join(map(_account, failed))}"
    )


def _account(row: Row) -> str:
    log = next((row.job.folder / name for name in (CONSOLE, "train.log") if (row.job.folder / name).is_file()), "")
    return f"\n  {row.label}: {row.progress}" + (f"\n    log: {log}" if log else "")


def require_devices(rows: Sequence[Row]) -> None:
    """Raise ``ConfigError`` if a job that is to be trained needs more devices than its launcher has."""
    todo = [row for row in rows if row.to_train]
    if not todo:
        return
    settings = todo[0].job.config.launcher
    if settings.name == "processes":
        Devices([row.job for row in todo], settings.devices)
    for row in todo if settings.name == "inline" else ():
        if row.job.config.trainer.devices * row.job.config.trainer.nodes > 1:
            raise ConfigError(
                f"launcher=inline: {row.label} needs trainer.devices={row.job.config.trainer.devices}, and one process "
                "drives one device. Say launcher=processes."
            )


def inline(train_here: Callable[[SweepJob], BaseException | None]) -> Train:
    """``launcher=inline``: one job after another in this process; ``train_here`` returns a failed job's exception."""

    def train(rows: Sequence[Row], table: LiveTable) -> None:
        todo = [row for row in rows if row.to_train]
        for number, row in enumerate(todo, 1):
            table.note(row, f"{number} of {len(todo)}")
            row.progress = Progress(RUNNING)
            error = train_here(row.job)
            row.progress = progress_now(row.job)
            if error is not None:
                row.progress = Progress(FAILED, str(error) or type(error).__name__, epoch=row.progress.epoch)
            table.note(row, str(row.progress))

    return train


def on_slurm(settings: slurm.SlurmSettings, folder: Path) -> Train:
    """``hydra/launcher=geexp_slurm``: as job arrays, with scripts and logs in ``folder``."""

    def train(rows: Sequence[Row], table: LiveTable) -> None:
        todo = {row.job.folder: row for row in rows if row.to_train}
        submitted = slurm.submit([row.job for row in todo.values()], settings, folder)
        with table:
            failed: dict[Path, str] = {}
            for change in slurm.watch(submitted):
                if change is not None:
                    if change.state == slurm.FAILED:
                        failed[change.submitted.job.folder] = change.detail
                    table.note(todo[change.submitted.job.folder], f"{change.state}: {change.detail}")
                    continue
                for run, row in todo.items():
                    row.progress = progress_now(row.job)
                    if run in failed:
                        row.progress = replace(row.progress, state=FAILED, reason=failed[run])
                table.update()

    return train


def _compare(rows: Sequence[Row]) -> None:
    folders = [row.job.folder for row in rows if row.same_as is None]
    if missing("report"):
        return
    if any(progress_now(row.job).state == DONE for row in rows):
        from geexp.report.comparison import compare_runs

        compare_runs(folders)
