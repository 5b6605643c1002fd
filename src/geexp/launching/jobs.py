"""The jobs of a sweep: what each one trains, where, and by which command."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from geexp.config.compose import validated
from geexp.config.errors import UserError
from geexp.config.schema import TrainConfig
from geexp.runs.job import Job, make_job, of_the_task


@dataclass(frozen=True)
class SweepJob(Job):
    """A job of a sweep, and the command that trains it alone.

    Attributes:
        number: its place in the sweep, from 0.
        overrides: those of its command line, without Hydra's own settings of the sweep.
        options: flags of Hydra that precede them, such as ``--config-dir``.
    """

    number: int
    overrides: tuple[str, ...]
    options: tuple[str, ...]

    def arguments(self) -> list[str]:
        """What follows ``python -m geexp.train`` to train this job alone."""
        return [*self.options, *self.overrides]

    def command(self) -> list[str]:
        """What is typed to train this job alone; one of several nodes on each of them, by a scheduler or by hand."""
        trainer = self.config.trainer
        start = ["python"]
        if trainer.nodes > 1:
            start = ["torchrun", f"--nnodes={trainer.nodes}", f"--nproc-per-node={trainer.devices}"]
            start += ["--rdzv-backend=c10d", "--rdzv-id=<job>", "--rdzv-endpoint=<first node>:29500"]
        return [*start, "-m", "geexp.train", *self.arguments()]


def shell(command: Sequence[str]) -> str:
    """A command as it is typed; ``<first node>`` stays readable."""
    return " ".join(word if re.search(r"<[a-z ]+>", word) else shlex.quote(word) for word in command)


def jobs_of(loader: ConfigLoader, sweep: DictConfig) -> list[SweepJob]:
    """The jobs that Hydra's sweeper makes of a composed sweep; of a single run, the one that it is.

    Raises:
        UserError: naming the job whose configuration is wrong.
    """
    parameters = OmegaConf.to_container(sweep.hydra.sweeper.get("params") or OmegaConf.create({}))
    assert isinstance(parameters, dict)
    arguments = [f"{key!s}={value!s}" for key, value in parameters.items()] + list(sweep.hydra.overrides.task)
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return [composed(loader, sweep, job, number) for number, job in enumerate(jobs)]


def composed(loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int) -> SweepJob:
    """One job of a sweep. Composing takes a tenth of a second, and who asks again for the same job gets the same one.

    Raises:
        UserError: naming the job, if its configuration is wrong.
    """
    key = (id(sweep), *overrides)
    if key not in _composed:
        _composed[key] = sweep, _compose(loader, sweep, overrides, number)
    return _composed[key][1]


_composed: dict[
    tuple[object, ...], tuple[DictConfig, SweepJob]
] = {}  # with the sweep, whose id would else be another's


def _compose(loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int) -> SweepJob:
    whole = loader.load_sweep_config(sweep, list(overrides))
    try:
        config = validated(TrainConfig, of_the_task(whole))
    except UserError as error:
        raise type(error)(f"job {number} ({' '.join(overrides)}): {error}") from error
    with open_dict(whole):
        whole.hydra.job.id = whole.hydra.job.num = number
    folder = _folder(whole, alone=sweep.hydra.mode == RunMode.RUN)
    arguments = [word for word in (*overrides, *_kept(sweep)) if not word.startswith("dry_run=")]
    arguments.append("hydra.mode=RUN")
    job = make_job(config, folder)
    arguments += in_folder(job)
    return SweepJob(config, job.identity, job.folder, number, tuple(arguments), tuple(_options(sweep)))


def in_folder(job: Job) -> list[str]:
    """The argument that gives a run its folder, if it is not the one that it has by itself."""
    if job.folder == (Path(job.config.outputs) / job.slug).absolute():
        return []
    quoted = str(job.folder).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.run.dir='{quoted}'"]


def _folder(whole: DictConfig, *, alone: bool) -> Path:
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(whole)  # for a folder that is named by ${hydra:…}
    try:
        if alone:
            return Path(str(whole.hydra.run.dir)).absolute()
        return (Path(str(whole.hydra.sweep.dir)) / str(whole.hydra.sweep.subdir)).absolute()
    finally:
        HydraConfig.instance().cfg = before


_OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweep", "hydra.sweep", "hydra.mode", "hydra.run.")


def _kept(sweep: DictConfig) -> list[str]:
    """What was said of Hydra itself and holds for a single run, too."""
    return [word for word in sweep.hydra.overrides.hydra if not word.lstrip("+~").startswith(_OF_THE_SWEEP)]


def _options(sweep: DictConfig) -> list[str]:
    """Where else configuration files lie."""
    sources = [source for source in sweep.hydra.runtime.config_sources if source.provider == "command-line"]
    return [f"--config-dir={source.path}" for source in sources]
