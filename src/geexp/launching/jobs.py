"""The jobs of a sweep: configuration, folder and command of each."""

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from geexp.config.compose import validated
from geexp.config.errors import ConfigError, UserError
from geexp.config.extras import require_extras
from geexp.config.schema import TrainConfig
from geexp.data.parallel import with_bar
from geexp.data.presence import require_data
from geexp.runs.job import Job, make_job, of_the_task, require_backbone

# Hydra settings that apply to a sweep, but not to one of its jobs run alone.
_OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweep", "hydra.sweep", "hydra.mode", "hydra.run.")


@dataclass(frozen=True)
class SweepJob(Job):
    """A job of a sweep, and the command that trains it alone.

    Attributes:
        number: position in the sweep, from 0.
        overrides: the job's command-line overrides, without Hydra's settings of the sweep.
        options: Hydra's flags before the overrides, such as ``--config-dir``.
        composed: the full configuration as composed by Hydra.
    """

    number: int
    overrides: tuple[str, ...]
    options: tuple[str, ...] = ()
    composed: DictConfig | None = field(default=None, repr=False, compare=False)

    def arguments(self) -> list[str]:
        """The arguments of ``python -m geexp.train`` that train this job alone."""
        return [*self.options, *self.overrides]

    def command(self) -> list[str]:
        """The command that trains this job alone; for several nodes, the command to start on each of them."""
        trainer = self.config.trainer
        start = ["python"]
        if trainer.nodes > 1:
            start = ["torchrun", f"--nnodes={trainer.nodes}", f"--nproc-per-node={trainer.devices}"]
            start += ["--rdzv-backend=c10d", "--rdzv-id=<job>", "--rdzv-endpoint=<first node>:29500"]
        return [*start, "-m", "geexp.train", *self.arguments()]


def require_inputs(config: TrainConfig) -> None:
    """Raise ``UserError`` if the data, or packages and weights of a detector, are missing."""
    require_data(config.data, config.feed)
    if config.detects:
        require_extras("a detector", "detection")
        require_backbone(config)


def shell(command: Sequence[str]) -> str:
    """A command quoted for a shell; placeholders such as ``<first node>`` stay readable."""
    return " ".join(word if re.search(r"<[a-z ]+>", word) else shlex.quote(word) for word in command)


def jobs_of(loader: ConfigLoader, sweep: DictConfig) -> list[SweepJob]:
    """The jobs of a composed sweep: all combinations of the values on its command line and in ``hydra.sweeper.params``.

    Raises:
        UserError: naming the job whose configuration is invalid.
    """
    parameters = OmegaConf.to_container(sweep.hydra.sweeper.get("params") or OmegaConf.create({}))
    assert isinstance(parameters, dict)
    words = [f"{key!s}={value!s}" for key, value in parameters.items()] + list(sweep.hydra.overrides.task)
    values: dict[str, list[str]] = {}  # by key, since the command line replaces the parameters
    for override in OverridesParser.create(config_loader=loader).parse_overrides(words):
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(
                f"{override.input_line}: an interval cannot be expanded into jobs. List the values, as in {key}=1,2,3, "
                "or choose a search algorithm with hydra/sweeper."
            )
    jobs = list(itertools.product(*values.values()))
    return [job_of(loader, sweep, job, number) for number, job in enumerate(with_bar(jobs, "composing the jobs"))]


def job_of(loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int) -> SweepJob:
    """Compose one job of a sweep. This takes a tenth of a second.

    Raises:
        UserError: naming the job, if its configuration is invalid.
    """
    composed = loader.load_sweep_config(sweep, list(overrides))
    try:
        config = validated(TrainConfig, of_the_task(composed))
    except UserError as error:
        raise type(error)(f"job {number} ({' '.join(overrides)}): {error}") from error
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    HydraConfig.instance().set_config(composed)  # for folders that contain ${hydra:…}
    job = make_job(config, Path(str(composed.hydra.sweep.dir)) / str(composed.hydra.sweep.subdir))
    return with_command(job, sweep.hydra, overrides, number, composed)


def with_command(
    job: Job, hydra: Any, overrides: Sequence[str], number: int = 0, composed: DictConfig | None = None
) -> SweepJob:
    """The job with the command that trains it alone; ``hydra`` is Hydra's own configuration."""
    kept = [word for word in hydra.overrides.hydra if not word.lstrip("+~").startswith(_OF_THE_SWEEP)]
    words = [word for word in (*overrides, *kept) if not word.lstrip("+").startswith("dry_run=")]
    if job.config.dry_run and len(words) == len(overrides) + len(kept):  # dry_run is set in a file
        words.append("dry_run=false")
    words += ["hydra.mode=RUN", *folder_argument(job)]
    sources = [source for source in hydra.runtime.config_sources if source.provider == "command-line"]
    options = tuple(f"--config-dir={source.path}" for source in sources)
    return SweepJob(job.config, job.identity, job.folder, number, tuple(words), options, composed)


def folder_argument(job: Job) -> list[str]:
    """The argument that sets a run's folder, unless it is the default one."""
    if job.folder == (Path(job.config.outputs) / job.slug).absolute():
        return []
    quoted = str(job.folder).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.run.dir='{quoted}'"]
