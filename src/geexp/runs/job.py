"""A training to be done: its configuration, what makes it the run that it is, and the folder of that run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from geexp.config.compose import validated
from geexp.config.errors import ConfigError
from geexp.config.schema import TrainConfig
from geexp.runs.identity import differences, identity, run_folder
from geexp.runs.weights_file import digest_of_weights


@dataclass(frozen=True)
class Job:
    """One training. ``identity`` is computed once, when the job is made; ``folder`` is absolute."""

    config: TrainConfig
    identity: dict[str, Any] = field(repr=False)
    folder: Path

    @property
    def slug(self) -> str:
        """The run's folder below ``outputs``, if it is not put elsewhere."""
        return run_folder(self.config, self.identity)

    def require_same(self, recorded: dict[str, Any]) -> None:
        """Raise ``ConfigError``, naming the keys, if what lies in the folder came from another configuration."""
        different = differences(self.identity, recorded)
        if different:
            named = ", ".join(f"{key}={ours} (there: {theirs})" for key, (ours, theirs) in different.items())
            raise ConfigError(
                f"{self.folder} holds a run of another configuration: {named}. "
                "Choose another folder, or start over in this one with force=true."
            )


def make_job(config: TrainConfig, folder: Path | None = None) -> Job:
    """The job of a checked configuration, in the folder that it has by itself unless another is given."""
    known = identity(config, weights=digest_of_weights(config.backbone_checkpoint))
    return Job(config, known, (folder or Path(config.outputs) / run_folder(config, known)).absolute())


def of_the_task(composed: DictConfig) -> DictConfig:
    """What Hydra composed without what is Hydra's own, or geexp.plan's."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key not in ("hydra", "hardware")])


def register_resolvers() -> None:
    """``${geexp.run_folder:}`` for Hydra's output folders. It validates, so a bad configuration makes no folder."""

    def resolve(*, _root_: DictConfig) -> str:
        return make_job(validated(TrainConfig, of_the_task(_root_))).slug

    OmegaConf.register_new_resolver("geexp.run_folder", resolve, replace=True)
