"""Checkpoints: written atomically, loadable with ``weights_only=True``, and enough to rebuild the network alone."""

import errno
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from geexp.config.compose import validated
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import TrainConfig
from geexp.runs.atomic_write import atomic_write
from geexp.runs.metrics import Score
from geexp.runs.run_files import BEST, LAST, PREVIOUS, checkpoint_folder
from geexp.training.stopping import Stopped

FORMAT = "geexp"
log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, renames: a checkpoint is there whole or not at all.

    The last checkpoint's predecessor is kept as ``previous.ckpt``. Lightning's own class stages in the temporary
    folder, which is not atomic across file systems, and hides a folder that cannot be written to.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """
        Raises:
            DataError: if the file cannot be written; what was there before still is.
        """
        path = Path(path)
        previous = path.with_name(PREVIOUS) if path.name == LAST else None
        try:
            with atomic_write(path, previous=previous) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch has its own words for a full disk, over the system's
            system = error if isinstance(error, OSError) else error.__context__
            reason = str(system.strerror) if isinstance(system, OSError) else str(error).splitlines()[0]
            remedy = "Let it be written to"
            if getattr(system, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
                remedy = "Make room"
                sizes = [file.stat().st_size for file in path.parent.glob("*.ckpt")]
                needed = f", and a checkpoint takes {max(sizes) / 2**20:,.1f}" if sizes else ""
                reason += f" ({shutil.disk_usage(path.parent).free / 2**20:,.1f} MiB are free there{needed})"
            raise DataError(
                f"{path} cannot be written: {reason}. What was there before is whole. {remedy}, then start the same "
                "command again: it goes on from the last checkpoint."
            ) from error


class RunInCheckpoint(pl.Callback):
    """Puts into every checkpoint what is needed to rebuild the network, and the metrics of the last finished epoch.

    Plain types only. ``run_id`` is the run's name at W&B, which a resumed run keeps.
    """

    def __init__(self, config: dict[str, Any], *, run_id: str) -> None:
        self.config, self.run_id = config, run_id
        self.epochs = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs = trainer.current_epoch + 1

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics: dict[str, float] = dict(pl_module.metrics)  # type: ignore[arg-type]
        checkpoint[FORMAT] = {
            "format": 1,
            "config": self.config,
            "run_id": self.run_id,
            "epoch": self.epochs,
            "metrics": metrics,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        about = checkpoint[FORMAT]
        self.epochs, pl_module.metrics = about["epoch"], dict(about["metrics"])  # type: ignore[assignment]


class LastCheckpoint(Checkpoint):
    """``checkpoints/last.ckpt`` after the validation of every epoch, once before the first, and in between.

    Args:
        every_n_steps: also within epochs, after so many steps each; None: a run that is killed within an epoch begins
            that epoch again. Either way it sees the images that it would have seen.
        stop: the signal that was agreed upon to stop at this point, or 0; then a checkpoint is taken, and the process
            ends by ``Stopped``.
    """

    def __init__(self, folder: Path, *, every_n_steps: int | None = None, stop: Callable[[], int] = lambda: 0) -> None:
        self.path, self.every_n_steps, self.stop = folder / LAST, every_n_steps, stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the gradients of half a step are in no checkpoint
        if trainer.is_last_batch or trainer.should_stop:
            return  # the validation comes now, which Lightning would leave out after a resumption from here
        if self.stop() or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.path)
            self._obey()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        if not trainer.should_stop and trainer.current_epoch + 1 != trainer.max_epochs:  # else all is done anyway
            self._obey()

    def _obey(self) -> None:
        if self.stop():
            raise Stopped(self.stop())


class BestCheckpoint(Checkpoint):
    """``checkpoints/best.ckpt``: the epoch with the lowest top-1 error or the highest mAP, the first of equal ones."""

    def __init__(self) -> None:
        self.best: dict[str, float] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics: dict[str, float] = pl_module.metrics  # type: ignore[assignment]
        score: Score = pl_module.score  # type: ignore[assignment]
        if self.best is None or score.better(metrics[score.key], than=self.best[score.key]):
            self.best = {"epoch": trainer.current_epoch + 1, **metrics}
            trainer.save_checkpoint(checkpoint_folder(Path(trainer.default_root_dir)) / BEST)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def newest_checkpoint(trainer: pl.Trainer) -> str:
    """A sentence on where a training can be taken up again."""
    last = checkpoint_folder(Path(trainer.default_root_dir)) / LAST
    try:
        step = load_checkpoint(last)["global_step"]
    except DataError:
        return "There is no checkpoint of it."
    return f"The last good checkpoint is {last}, of step {step}."


def checkpoint_to_resume(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The run's newest checkpoint that can be read, and what it says of itself; None if there is none at all.

    Of a damaged ``last.ckpt`` there is a warning.

    Raises:
        DataError: if there are checkpoints, and none can be read.
    """
    last, previous = (checkpoint_folder(run) / name for name in (LAST, PREVIOUS))
    damage: list[str] = []
    for path in (last, previous):
        if not path.exists():
            continue
        try:
            about = load_checkpoint(path)[FORMAT]
        except DataError as error:
            damage.append(str(error))
            continue
        if damage:
            log.warning("%s Going on from the one before it: %s", damage[0], path)
        return path, about
    if damage:
        raise DataError(f"{' '.join(damage)} Nothing to go on from; to start this run over: force=true")
    return None


def configuration_of(path: Path, about: dict[str, Any]) -> TrainConfig:
    """The configuration of the run that a checkpoint is of.

    Raises:
        DataError: if it is not one of this version.
    """
    try:
        return validated(TrainConfig, about["config"])
    except ConfigError as error:
        raise DataError(f"checkpoint {path}: of another version of geexp, with other settings. {error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, as a plain dictionary on the CPU.

    Raises:
        DataError: for a file that is missing, damaged by as little as a bit, unsafe to load, or not of a run of geexp.
    """
    if not path.is_file():
        raise DataError(f"checkpoint {path}: there is no such file.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes check sums, and does not look at them
            broken = archive.testzip()
            marked = [entry.filename for entry in archive.infolist() if entry.external_attr]
        if broken is not None:
            raise zipfile.BadZipFile(f"the check sum of {broken} is another")
        if marked:  # as a folder perhaps, of which torch reads nothing and leaves the tensor as the memory was
            raise zipfile.BadZipFile(f"{marked[0]} has attributes, which torch gives to none")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise whatever the damage provokes
        raise DataError(f"checkpoint {path}: cannot be read as one ({type(error).__name__}); is it damaged?") from error
    about = checkpoint.get(FORMAT) if isinstance(checkpoint, dict) else None
    whole = isinstance(about, dict) and {"config", "run_id", "epoch", "metrics"} <= about.keys()
    if not isinstance(about, dict) or not whole or about.get("format") != 1:
        raise DataError(
            f"checkpoint {path}: not written by a run of this geexp, so it does not say which network it belongs to."
        )
    return checkpoint
