"""The implementation of the sweeper and launchers in ``hydra_plugins``: plan, launch, report outcomes."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geexp.config.arguments import several_values
from geexp.config.errors import ConfigError, TrainingError
from geexp.config.extras import missing
from geexp.config.process import PlainConsole
from geexp.config.ranks import rank, srun_tasks, world_size
from geexp.launching import slurm
from geexp.launching.jobs import SweepJob, job_of, jobs_of
from geexp.launching.live_table import LiveTable, table_of
from geexp.launching.plan import DONE, FAILED, RUNNING, Progress, Row, plan, progress_now, require_all_data, show_plan
from geexp.launching.processes import CONSOLE, Devices, train_in_processes
from geexp.runs.run import Run

Train = Callable[[Sequence[Row], LiveTable], None]


class SweepError(TrainingError):
    """Some jobs of a sweep have failed; all others are done."""


def run_jobs(context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
    """Launch all jobs of a sweep, print them (``dry_run=true``), or pass them to a command such as ``geexp.plan``.

    Every job is composed and checked, with its data and devices, before the first one starts and before any folder is
    created.

    Raises:
        UserError: for an invalid job or sweep, or if jobs failed.
    """
    on_jobs = getattr(task, "on_jobs", None)
    if on_jobs is None and not config.get("dry_run"):
        _refuse_in_ranks(config)
    jobs = jobs_of(context.config_loader, config)
    if on_jobs is not None:
        on_jobs(jobs, config)
        return
    if config.get("dry_run"):
        if config.hydra.sweep.subdir == "." and len(jobs) > 1:  # see geexp.config.command: without -m
            for given in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
                if given.is_sweep_override():
                    raise several_values(str(given.input_line))
            raise ConfigError("hydra.sweeper.params: several values of a key make a sweep: add -m.")
        show_plan(plan(jobs), PlainConsole(quiet=rank() != 0), commands=True)
        return
    rows = plan(jobs)
    require_all_data(rows)
    launcher: Any = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    if not hasattr(launcher, "launch_rows"):  # another launcher, such as joblib
        overrides = [list(job.composed.hydra.overrides.task) for job in jobs if job.composed is not None]
        for ended in launcher.launch(overrides, initial_job_idx=0):
            _ = ended.return_value  # raises the exception of a job that failed
        return
    launcher.launch_rows(rows)
    error = _failures(rows)
    if error is not None:
        raise error


def launch_rows(
    context: HydraContext, task: TaskFunction, config: DictConfig, rows: Sequence[Row], train: Train | None
) -> None:
    """Launch the jobs of a sweep, show the outcome of each, and compare the finished runs. Errors: see ``_launch``."""
    try:
        _launch(context, task, config, rows, train)
    finally:
        _compare(rows)


def _launch(
    context: HydraContext, task: TaskFunction, config: DictConfig, rows: Sequence[Row], train: Train | None
) -> None:
    """Show the plan, train its jobs with ``train`` or as set by ``launcher``, and show the outcome of each.

    Raises:
        ConfigError: if a job needs more devices than the launcher has.
        KeyboardInterrupt, SystemExit: after signals, once all jobs have ended and the finished runs are shown.
    """
    if train is None and rows[0].job.config.launcher.name == "inline":
        train = _inline(context, task, config, rows)
    elif train is None:
        if todo := [row.job for row in rows if row.to_train]:
            Devices(todo, todo[0].config.launcher.devices)  # raises before anything is shown
        train = train_in_processes
    console = PlainConsole(stderr=True)
    show_plan(rows, console)
    if any(row.to_train for row in rows):
        train(rows, LiveTable(rows, console))
        console.print(table_of(rows))


def launch_batch(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    overrides: Sequence[Sequence[str]],
    first: int,
    train: Train | None,
) -> list[JobReturn]:
    """Launch jobs of a hyperparameter search, and return their results to its sweeper.

    Raises:
        ConfigError: for a command that needs all jobs of the sweep in advance.
    """
    if getattr(task, "on_jobs", None) is not None or config.get("dry_run"):
        raise ConfigError(
            f"hydra.sweeper._target_={config.hydra.sweeper._target_}: this sweeper chooses its jobs while it runs, so "
            "they cannot be listed in advance. Leave out either the sweeper or dry_run=true."
        )
    _refuse_in_ranks(config)
    rows = plan([job_of(context.config_loader, config, job, first + n) for n, job in enumerate(overrides)])
    typed = set(config.hydra.overrides.task)  # on the command line, so not chosen by the search
    for row, words in zip(rows, overrides, strict=True):
        row.label = " ".join(word for word in words if word not in typed) or row.label
    require_all_data(rows)
    _launch(context, task, config, rows, train)
    error = _failures(rows)
    returns = []
    for row, words in zip(rows, overrides, strict=True):
        result = Run(row.job.folder).result
        ended = JobReturn(list(words), working_dir=str(row.job.folder))
        ended.status = JobStatus.FAILED if result is None else JobStatus.COMPLETED
        ended.return_value = error if result is None else result.score.loss(result.metrics["last"])
        returns.append(ended)
    return returns


def on_slurm(config: DictConfig, settings: dict[str, Any]) -> Train:
    """``hydra/launcher=geexp_slurm`` with the settings of ``hydra.launcher``; scripts and logs in ``<sweep>/slurm``."""
    try:
        checked = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(slurm.SlurmSettings), settings))
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.launcher.{error.full_key}: {str(error).splitlines()[0]}") from error
    folder = Path(config.hydra.sweep.dir) / "slurm"

    def train(rows: Sequence[Row], table: LiveTable) -> None:
        todo = {row.job.folder: row for row in rows if row.to_train}
        submitted = slurm.submit([row.job for row in todo.values()], cast(slurm.SlurmSettings, checked), folder)
        failed: dict[Path, str] = {}
        with table:
            for change in slurm.watch(submitted):
                if change is not None:
                    run = change.submitted.job.folder
                    if change.state == slurm.FAILED:
                        failed[run] = change.detail
                    table.note(todo[run], f"{change.state}: {change.detail}")
                    continue
                for run, row in todo.items():
                    row.progress = progress_now(row.job)
                    if run in failed:
                        row.progress = replace(row.progress, state=FAILED, reason=failed[run])
                table.update()

    return train


def _inline(context: HydraContext, task: TaskFunction, config: DictConfig, rows: Sequence[Row]) -> Train:
    """``launcher=inline``: one job after another in this process."""
    for row in rows:
        if row.to_train and row.job.config.trainer.devices * row.job.config.trainer.nodes > 1:
            raise ConfigError(
                f"launcher=inline: {row.label} needs trainer.devices={row.job.config.trainer.devices}, but one process "
                "can use only one device. Use launcher=processes."
            )

    def train(rows: Sequence[Row], table: LiveTable) -> None:
        todo = [row for row in rows if row.to_train]
        for number, row in enumerate(todo, 1):
            table.note(row, f"{number} of {len(todo)}")
            row.progress = Progress(RUNNING)
            error = _train_here(context, task, config, row.job)
            row.progress = progress_now(row.job)
            if error is not None:
                row.progress = Progress(FAILED, str(error) or type(error).__name__, epoch=row.progress.epoch)
            table.note(row, str(row.progress))

    return train


def _train_here(context: HydraContext, task: TaskFunction, config: DictConfig, job: SweepJob) -> Exception | None:
    """Train a job in this process; returns the exception if the job failed, so that the next job can run."""
    failed: list[Exception] = []

    def attempt(composed: DictConfig) -> Any:
        try:
            return task(composed)
        except Exception as error:
            failed.append(error)
            return None

    assert job.composed is not None
    run_job(
        task_function=attempt,
        config=job.composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return failed[0] if failed else None


def _failures(rows: Sequence[Row]) -> SweepError | None:
    """The error at the end of a sweep with unfinished jobs; None if all are done."""
    failed = [row for row in rows if row.same_as is None and row.progress.state != DONE]
    if not failed:
        return None
    message = (
        f"{len(failed)} of {len(rows)} jobs {'is' if len(failed) == 1 else 'are'} not done; the same command retries "
        "them, and resumes from checkpoints."
    )
    for row in failed:
        message += f"\n  {row.label}: {row.progress}"
        logs = [row.job.folder / name for name in (CONSOLE, "train.log") if (row.job.folder / name).is_file()]
        message += f"\n    log: {logs[0]}" if logs else ""
    return SweepError(message)


def _refuse_in_ranks(config: DictConfig) -> None:
    if world_size() == 1 and srun_tasks() == 1:
        return
    if rank() != 0 or os.environ.get("SLURM_PROCID", "0") != "0":
        sys.exit(ConfigError.exit_code)
    command = shlex.join(["python", "-m", f"geexp.{config.hydra.job.name}", *sys.argv[1:]])
    started = "torchrun" if world_size() > 1 else "srun"
    raise ConfigError(
        f"start a sweep with plain python; under {started} every process would run all of it. The launcher starts the "
        f"processes of each job. Use: {command}"
    )


def _compare(rows: Sequence[Row]) -> None:
    if not missing("report") and any(progress_now(row.job).state == DONE for row in rows):
        from geexp.report.comparison import compare_runs

        compare_runs([row.job.folder for row in rows if row.same_as is None])
