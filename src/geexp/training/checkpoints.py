"""Checkpoints: written atomically, loadable with ``weights_only=True``, and enough to rebuild the network alone."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from geexp.config.errors import DataError
from geexp.records.whole_file import whole_file

FORMAT = "geexp"
BEST, LAST = "best.ckpt", "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, renames: a checkpoint is there whole or not at all.

    Lightning's own stages in the temporary folder, which is not atomic across file systems, and hides a folder
    that cannot be written to.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)


class RunInCheckpoint(pl.Callback):
    """Puts into every checkpoint what is needed to rebuild the network, and the metrics of the last finished epoch.

    Plain types only.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.epochs = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs = trainer.current_epoch + 1

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics: dict[str, float] = dict(pl_module.metrics)  # type: ignore[arg-type]
        checkpoint[FORMAT] = {"format": 1, "config": self.config, "epoch": self.epochs, "metrics": metrics}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        about = checkpoint[FORMAT]
        self.epochs, pl_module.metrics = about["epoch"], dict(about["metrics"])  # type: ignore[assignment]


class LastCheckpoint(Checkpoint):
    """``checkpoints/last.ckpt`` after the validation of every epoch, once before the first, and in between if asked.

    Args:
        every_n_steps: also within epochs, after so many steps each; None: a run that is interrupted within an epoch
            begins that epoch again. Either way it sees the images that it would have seen.
    """

    def __init__(self, folder: Path, *, every_n_steps: int | None = None) -> None:
        self.path, self.every_n_steps = folder / LAST, every_n_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After an epoch's last step Lightning would go on with the next epoch, without this one's validation.
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class BestCheckpoint(Checkpoint):
    """``checkpoints/best.ckpt``: the epoch with the lowest validation top-1 error, the first of equal ones."""

    def __init__(self) -> None:
        self.best: dict[str, float] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics: dict[str, float] = pl_module.metrics  # type: ignore[assignment]
        if self.best is None or metrics["val/top1_error"] < self.best["val/top1_error"]:
            self.best = {"epoch": trainer.current_epoch + 1, **metrics}
            trainer.save_checkpoint(checkpoint_folder(Path(trainer.default_root_dir)) / BEST)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def checkpoint_folder(run: Path) -> Path:
    return run / "checkpoints"


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, as a plain dictionary on the CPU.

    Raises:
        DataError: for a file that is missing, unreadable, unsafe to load, or not of a run of geexp.
    """
    if not path.is_file():
        raise DataError(f"checkpoint {path}: there is no such file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage provokes
        raise DataError(f"checkpoint {path}: cannot be read as one ({type(error).__name__}); is it damaged?") from error
    about = checkpoint.get(FORMAT) if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or not {"config", "epoch", "metrics"} <= about.keys() or about.get("format") != 1:
        raise DataError(
            f"checkpoint {path}: not written by a run of this geexp, so it does not say which network it belongs to."
        )
    return checkpoint
