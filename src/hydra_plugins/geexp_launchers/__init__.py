"""geexp's sweeper and launchers as Hydra plugins. Hydra imports this in every process, so heavy imports are lazy."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GeexpSweeper(Sweeper):
    """``hydra/sweeper=geexp``: all combinations of the given values, composed and checked before the first job starts.

    Args:
        params: values by key; the command line overrides them.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.given = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from geexp.launching.sweep import run_jobs

        run_jobs(*self.given)


class GeexpLauncher(Launcher):
    """``hydra/launcher=geexp``: run jobs as set by ``launcher=``, in separate process trees or in this process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.given = hydra_context, task_function, config

    def launch_rows(self, rows: Sequence[Any]) -> None:
        """Launch the planned rows of a ``GeexpSweeper``."""
        from geexp.launching.sweep import launch_rows

        launch_rows(*self.given, rows, self._train())

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launch a batch of jobs from another sweeper, such as a hyperparameter search."""
        from geexp.launching.sweep import launch_batch

        return launch_batch(*self.given, job_overrides, initial_job_idx, self._train())

    def _train(self) -> Any:
        return None


class GeexpSlurmLauncher(GeexpLauncher):
    """``hydra/launcher=geexp_slurm``: run jobs as SLURM job arrays, with the settings of ``SlurmSettings``."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def _train(self) -> Any:
        from geexp.launching.sweep import on_slurm

        return on_slurm(self.given[2], self.settings)
