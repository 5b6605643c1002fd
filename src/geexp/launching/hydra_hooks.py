"""What our sweeper and launchers (``hydra_plugins``) do with a sweep."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from geexp.config.errors import ConfigError
from geexp.config.ranks import rank, srun_tasks, world_size
from geexp.launching import sweep
from geexp.launching.jobs import SweepJob, job_of, jobs_of
from geexp.launching.plan import Row, dry_run, plan, require_all_data
from geexp.launching.processes import train_in_processes
from geexp.launching.slurm import SlurmSettings
from geexp.runs.run import Run


def run_jobs(context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
    """Hand all jobs of a sweep to the command that asks for them, print them (``dry_run=true``), or launch them.

    Every job is composed and checked, with its data and devices, before the first one starts and before a folder is
    made.

    Raises:
        UserError: for what is wrong with a job or with the sweep, or if jobs failed.
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
            raise ConfigError("several values of a key make a sweep: add -m, or name one value.")
        dry_run(jobs, Console(quiet=rank() != 0))
        return
    rows = plan(jobs)
    require_all_data(rows)
    launcher: Any = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    if not hasattr(launcher, "launch_rows"):  # another one, such as joblib
        overrides = [list(job.composed.hydra.overrides.task) for job in jobs if job.composed is not None]
        for ended in launcher.launch(overrides, initial_job_idx=0):
            _ = ended.return_value  # raises the exception of a job that failed
        return
    launcher.launch_rows(rows)
    error = sweep.failures(rows)
    if error is not None:
        raise error


def launch_rows(
    context: HydraContext, task: TaskFunction, config: DictConfig, rows: Sequence[Row], train: sweep.Train | None
) -> None:
    """Train the jobs with ``train``, or as the configuration's ``launcher`` says."""
    if train is None:
        sweep.require_devices(rows)
        here = rows[0].job.config.launcher.name == "inline"
        train = sweep.inline(_train_here(context, task, config)) if here else train_in_processes
    sweep.run_sweep(rows, train)


def launch_batch(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    overrides: Sequence[Sequence[str]],
    first: int,
    train: sweep.Train | None,
) -> list[JobReturn]:
    """Launch the jobs of a sweeper that searches, and tell it how they ended.

    Raises:
        ConfigError: for a command that needs to know all jobs of the sweep at once.
    """
    if getattr(task, "on_jobs", None) is not None or config.get("dry_run"):
        raise ConfigError(
            f"hydra.sweeper._target_={config.hydra.sweeper._target_}: it chooses its jobs while it runs, so that they "
            "cannot be shown before. Leave the sweeper out, or dry_run=true."
        )
    _refuse_in_ranks(config)
    rows = plan([job_of(context.config_loader, config, job, first + n) for n, job in enumerate(overrides)])
    require_all_data(rows)
    launch_rows(context, task, config, rows, train)
    error = sweep.failures(rows)
    returns = []
    for row, words in zip(rows, overrides, strict=True):
        result = Run(row.job.folder).result
        ended = JobReturn(list(words), working_dir=str(row.job.folder))
        ended.status = JobStatus.FAILED if result is None else JobStatus.COMPLETED
        ended.return_value = error if result is None else result.score.loss(result.metrics["last"])
        returns.append(ended)
    return returns


def slurm(config: DictConfig, settings: dict[str, Any]) -> sweep.Train:
    """``hydra/launcher=geexp_slurm`` with the settings of ``hydra.launcher``."""
    try:
        checked = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SlurmSettings), settings))
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.launcher.{error.full_key}: {str(error).splitlines()[0]}") from error
    return sweep.on_slurm(cast(SlurmSettings, checked), Path(config.hydra.sweep.dir) / "slurm")


def _train_here(
    context: HydraContext, task: TaskFunction, config: DictConfig
) -> Callable[[SweepJob], BaseException | None]:
    def train(job: SweepJob) -> BaseException | None:
        failed: list[Exception] = []

        def attempt(composed: DictConfig) -> Any:
            try:
                return task(composed)
            except Exception as error:  # which the next job survives
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

    return train


def _refuse_in_ranks(config: DictConfig) -> None:
    if world_size() == 1 and srun_tasks() == 1:
        return
    if rank() != 0 or os.environ.get("SLURM_PROCID", "0") != "0":
        sys.exit(ConfigError.exit_code)
    command = shlex.join(["python", "-m", f"geexp.{config.hydra.job.name}", *sys.argv[1:]])
    started = "torchrun" if world_size() > 1 else "srun"
    raise ConfigError(
        f"a sweep is started once, with plain python; under {started} every process would run all of it. Each of its "
        f"jobs gets the processes that it needs by itself. Say: {command}"
    )
