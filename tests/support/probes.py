"""What runs inside of the trainings that the tests launch: callbacks that watch, and that do what a test asks for."""

import hashlib
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from torch import Tensor

from geexp.runs.identity import flat
from geexp.runs.run_files import write_json
from geexp.training.stopping import SafePoints


def configuration(trainer: pl.Trainer) -> dict[str, Any]:
    """What this rank was told to train, by dotted keys."""
    (found,) = [flat(callback.config) for callback in trainer.callbacks if isinstance(callback, SafePoints)]
    return found


class Record(pl.Callback):
    """Writes what every rank is, and a digest of every image that it is given, to a file of its own in ``folder``."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: dict[str, list[str]] = defaultdict(list)

    def note(self, split: str, epoch: int, images: Tensor) -> None:
        for image in images:
            levels = ((image * 0.3530 + 0.2860) * 255).round().int()  # what the data set was normalised with
            self.seen[f"{split} {epoch}"].append(hashlib.sha256(levels.numpy().tobytes()).hexdigest()[:16])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        self.note("train", trainer.current_epoch, batch[0])

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.note("val", trainer.current_epoch, batch[0])

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        about = {
            "config": configuration(trainer),
            "folder": str(trainer.default_root_dir),
            "rank": trainer.global_rank,
            "world": dist.get_world_size() if dist.is_initialized() else 1,
            "lr": trainer.optimizers[0].param_groups[0]["base_lr"],
            "operators": sum("GatherExcite" in type(module).__name__ for module in pl_module.modules()),
            "seen": self.seen,
        }
        write_json(self.folder / f"{os.getpid()}.json", about)


class Puppet(pl.Callback):
    """Does at a known point, the start of a batch, what the test says: any rank of any job, by the same command.

    It says ``<folder>/<job>.at`` when it is there, with its process, and looks for ``<folder>/<job>.do`` then, where
    ``<job>`` is ``<ge>-<number of ranks>-<rank>``: ``wait`` as long as the file is there, or once ``raise``, ``exit``
    as if all were well, or ``foreign <run>``: that too, beside the result of that run.
    """

    def __init__(self, folder: str, epoch: int = 1, batch: int = 2) -> None:
        self.folder, self.point = Path(folder), (epoch, batch)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if (trainer.current_epoch, batch_idx) != self.point:
            return
        config = configuration(trainer)
        name = f"{config['ge.variant']}-{trainer.world_size}-{trainer.global_rank}"
        write_json(self.folder / f"{name}.at", os.getpid())
        order = self.folder / f"{name}.do"
        if not order.exists():
            return
        what, _, detail = order.read_text().partition(" ")
        while what == "wait" and order.exists():
            time.sleep(0.05)
        order.unlink(missing_ok=True)
        if what == "raise":
            raise RuntimeError("made to fail")
        if what == "foreign":
            shutil.copy(Path(detail) / "result.json", trainer.default_root_dir)
        if what in ("exit", "foreign"):
            os._exit(0)
