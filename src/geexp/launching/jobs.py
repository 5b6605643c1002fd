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

from geexp.config.arguments import quoted_override
from geexp.config.compose import is_ours, validated
from geexp.config.errors import ConfigError, UserError
from geexp.config.extras import require_extras
from geexp.config.schema import TrainConfig
from geexp.data.parallel import with_bar
from geexp.data.presence import require_data
from geexp.runs.data_record import DataRecord, read_data_record
from geexp.runs.job import Job, make_job, of_the_task, weights_file
from geexp.runs.run import Run
from geexp.training.wandb_content import mode_in_environment

# Hydra settings that apply to a sweep, but not to one of its jobs run alone.
_OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweep", "hydra.sweep", "hydra.mode", "hydra.run.")


Records = dict[object, DataRecord | None]


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
    """Raise ``UserError`` if the data, the initial weights or a package are missing, or for a wrong WANDB_MODE."""
    if config.logger.has("tensorboard"):
        require_extras("logger=tensorboard", "tensorboard")
    if config.logger.has("wandb"):
        mode_in_environment()
    require_data(config.data, config.feed)
    if config.detects:
        require_extras("a detector", "detection")
    weights_file(config)


def require_same_data(job: Job, known: Records | None = None) -> None:
    """Raise ConfigError if the run in the job's folder, finished or stopped, read other data than the job would.

    Class folders and packs are compared by the names of their images, without opening one. Other data sets are opened
    if they are in another folder than recorded. Official data sets and missing ones are not compared.

    Args:
        known: records that were read before, to which this function adds.
    """
    config, run = job.config, Run(job.folder)
    recorded = read_data_record(job.folder)
    start_over = config.force or (config.resume is False and run.result is None)
    if recorded is None or start_over or not (run.result or run.resumable):
        return
    try:
        require_data(config.data, config.feed)
    except ConfigError:
        return
    ours = _record_of(config, recorded.source, known)
    if ours is not None:
        ours.require_same(job.folder)


def require_one_data_set(job: Job, other: Job, known: Records | None = None) -> None:
    """Raise ConfigError if two jobs that share a folder would read different data; see ``require_same_data``."""
    from geexp.data.record import source_of

    ours, theirs = (source_of(one.config.data, one.config.feed) for one in (job, other))
    if ours == theirs:
        return
    require_data(job.config.data, job.config.feed)
    one, two = _record_of(job.config, theirs, known), _record_of(other.config, ours, known)
    parts = one.differences(two) if one is not None and two is not None else []
    if parts:
        raise ConfigError(
            f"{ours} and {theirs} are different data ({'; '.join(parts)}) of the same name, so both jobs would be one "
            f"run in {job.folder}. Give each data set a name of its own with data.name=<name>."
        )


def _record_of(config: TrainConfig, elsewhere: str | None, known: Records | None) -> DataRecord | None:
    """The record of the data of a job, to be compared with data from ``elsewhere``; None if there is no need to."""
    from geexp.data.record import source_of, stored_record  # which need numpy

    data, feed, known = config.data, config.feed, {} if known is None else known
    source = source_of(data, feed)
    key = (data._target_, source, data.keep_classes)
    if key not in known:
        known[key] = stored_record(data, feed)
    official = is_ours(data._target_) and (data.downloadable or not data.requires)
    if known[key] is None and not official and source != elsewhere:
        return task_of(config).data(config).record()
    return known[key]


def task_of(config: TrainConfig) -> Any:
    """The task of a configuration, classification or detection, as a ``geexp.training.task.Task``."""
    if config.detects:
        from geexp.detection.task import Detection

        return Detection()
    from geexp.training.classification import Classification

    return Classification()


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
    return [quoted_override("hydra.run.dir", str(job.folder))]
