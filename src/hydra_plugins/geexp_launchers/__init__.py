"""Our launchers, where Hydra looks for them. Hydra imports this in every process: nothing heavy here."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GeexpLauncher(Launcher):
    """``hydra/launcher=geexp``: as ``launcher=`` says, each job a process tree of its own, or all in this process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from geexp.launching.hydra_side import launch

        return launch(self.context, self.task, self.config, job_overrides, initial_job_idx, self._train())

    def _train(self) -> Any:
        return None


class GeexpSlurmLauncher(GeexpLauncher):
    """``hydra/launcher=geexp_slurm``: as SLURM job arrays. The settings are those of ``SlurmSettings``."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def _train(self) -> Any:
        from geexp.launching.hydra_side import on_slurm

        return on_slurm(self.config, self.settings)
