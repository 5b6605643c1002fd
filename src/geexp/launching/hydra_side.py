"""What Hydra calls: before the jobs of a command, and to launch them."""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from geexp.config.command import explain
from geexp.config.errors import ConfigError, UserError
from geexp.config.ranks import rank, srun_tasks, world_size
from geexp.config.schema import HardwareConfig, TrainConfig
from geexp.launching import sweep
from geexp.launching.board import table_of
from geexp.launching.budget import show_budget
from geexp.launching.jobs import SweepJob, composed, jobs_of
from geexp.launching.plan import Row, plan, require_all_data, show_plan
from geexp.launching.progress import DONE
from geexp.launching.slurm import SlurmSettings
from geexp.runs.metrics import score_of
from geexp.runs.run_files import read_result


class CheckEveryJob(Callback):
    """Every job of a multirun is composed and checked before the first one starts and before a folder is made.

    Hydra itself composes all jobs first, but neither types nor values are checked until a job's turn comes. With
    ``dry_run=true`` the plan is all that there is, also of a single run.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.get("dry_run"):
            self._dry_run(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _refuse_in_ranks(config)
        if config.get("dry_run"):
            self._dry_run(config)
        if config.hydra.sweeper._target_.endswith("BasicSweeper"):  # one that searches does not know its jobs yet
            rows = _planned(config)
            with _refusing(config):
                require_all_data(rows)
                if config.hydra.launcher._target_.endswith(".GeexpLauncher"):
                    sweep.require_devices(rows)

    def _dry_run(self, config: DictConfig) -> None:
        show_plan(_planned(config), Console(), commands=True)
        sys.exit(0)


class ShowStatus(Callback):
    """``python -m geexp.status``: the table of a sweep's runs as their folders tell, and nothing else."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        rows = _planned(config)
        Console().print(table_of(rows))
        own = [row for row in rows if row.same_as is None]
        for row in own:
            if row.progress.reason and row.progress.state != DONE:
                print(f"{row.label}: {row.progress}")
        print(f"{sum(row.progress.state == DONE for row in own)} of {len(own)} done")
        sys.exit(0)


class ShowBudget(Callback):
    """``python -m geexp.plan``: what the sweep would cost on ``hardware``, and nothing else."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        rows = _planned(config)
        with _refusing(config):
            stated = OmegaConf.merge(OmegaConf.structured(HardwareConfig), config.hardware)
            show_budget(rows, cast(HardwareConfig, OmegaConf.to_object(stated)), Console())
        sys.exit(0)


def launch(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    overrides: Sequence[Sequence[str]],
    first: int,
    train: sweep.Train | None = None,
) -> list[JobReturn]:
    """Launch the jobs that a sweeper has made, by ``train``, or as the configuration's ``launcher`` says."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    jobs = [composed(context.config_loader, config, job, first + number) for number, job in enumerate(overrides)]
    if train is None:
        here = jobs[0].config.launcher.name == "inline"
        train = sweep.inline(_train_here(context, task, config, overrides, first)) if here else sweep.processes
    rows = sweep.run_sweep(jobs, train)
    error = sweep.failures(rows)
    returns: list[JobReturn] = []
    for row in rows:
        result = read_result(row.job.folder) if row.progress.state == DONE or row.same_as is not None else None
        last = result["metrics"]["last"] if result is not None else None
        value = score_of(last).loss(last) if last is not None else error
        status = JobStatus.FAILED if result is None else JobStatus.COMPLETED
        returns.append(
            Ended(list(row.job.overrides), working_dir=str(row.job.folder), status=status, _return_value=value)
        )
    return returns


def on_slurm(config: DictConfig, settings: dict[str, Any]) -> sweep.Train:
    """``hydra/launcher=geexp_slurm`` with the settings of ``hydra.launcher``."""
    try:
        checked = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SlurmSettings), settings))
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.launcher.{error.full_key}: {str(error).splitlines()[0]}") from error
    return sweep.on_slurm(cast(SlurmSettings, checked), Path(config.hydra.sweep.dir) / "slurm")


@dataclass
class Ended(JobReturn):
    """A job's end. Hydra's own class prints a line about the job whose failure is asked for, which we have done."""

    @property
    def return_value(self) -> Any:
        if isinstance(self._return_value, BaseException):
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def _train_here(
    context: HydraContext, task: TaskFunction, config: DictConfig, overrides: Sequence[Sequence[str]], first: int
) -> Callable[[SweepJob], BaseException | None]:
    logging.getLogger(BasicLauncher.__module__).setLevel(logging.WARNING)  # the board says which job it is
    launcher = BasicLauncher()
    launcher.setup(hydra_context=context, task_function=task, config=config)

    def train(job: SweepJob) -> BaseException | None:
        (ended,) = launcher.launch([overrides[job.number - first]], job.number)
        return ended._return_value if ended.status == JobStatus.FAILED else None

    return train


def _planned(config: DictConfig) -> list[Row]:
    jobs = _jobs(config)
    with _refusing(config):
        return plan(jobs)


def _jobs(config: DictConfig) -> list[SweepJob]:
    with _refusing(config):
        return jobs_of(GlobalHydra.instance().config_loader(), config)


@contextmanager
def _refusing(config: DictConfig) -> Iterator[None]:
    """Hydra would turn an exception of a callback into a warning, and go on."""
    try:
        yield
    except Exception as error:
        mistake = explain(error, TrainConfig)
        if mistake is None:
            traceback.print_exc()
            sys.exit(1)
        _refuse(config, mistake)


def _refuse_in_ranks(config: DictConfig) -> None:
    if world_size() == 1 and srun_tasks() == 1:
        return
    if rank() == 0 and os.environ.get("SLURM_PROCID", "0") == "0":
        command = shlex.join(["python", "-m", f"geexp.{config.hydra.job.name}", *sys.argv[1:]])
        started = "torchrun" if world_size() > 1 else "srun"
        _refuse(
            config,
            ConfigError(
                f"a sweep is started once, with plain python; under {started} every process would run all of it. Each "
                f"of its jobs gets the processes that it needs by itself. Say: {command}"
            ),
        )
    sys.exit(ConfigError.exit_code)


def _refuse(config: DictConfig, error: UserError) -> NoReturn:
    print(f"geexp.{config.hydra.job.name}: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
