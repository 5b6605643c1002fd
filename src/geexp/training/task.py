"""What a run can be trained for: classification here, detection elsewhere. ``training.run`` knows no more of it."""

from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl

from geexp.config.schema import TrainConfig


class Ending(Protocol):
    """What the last validation has to show."""

    def charts(self) -> dict[str, Any]:
        """By key, as W&B takes it."""


class Task(Protocol):
    """The parts of a run that depend on what is trained.

    The module has ``metrics``, ``score``, ``rate``, ``lr`` and ``loss_watch`` as ``Classifier`` has them.
    """

    def data(self, config: TrainConfig) -> pl.LightningDataModule:
        """Opened already, so that whatever is wrong with the data is said now; it has ``account()``."""

    def module(self, config: TrainConfig) -> pl.LightningModule:
        """With the weights that training begins with."""

    def facts(self, config: TrainConfig, module: pl.LightningModule) -> dict[str, Any]:
        """For ``result.json``: ``complexity``, and what else the task knows."""

    def ending(self, trainer: pl.Trainer, module: Any, data: Any, folder: Path) -> Ending | None:
        """What of the last validation W&B is to be shown beside the history; every rank must ask."""
