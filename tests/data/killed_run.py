"""A training that writes down every batch it is given, and kills itself where it is told to; see test_resume.py.

    python killed_run.py <folder of images> <run> <world size> <feed as JSON> <how it ends>

``how it ends``: ``whole``, ``step:<n>`` after n steps, ``saved:<n>`` the same with a checkpoint taken then,
``epoch:<n>`` when epoch n begins.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from geexp.config.schema import FeedConfig
from geexp.data.module import ImageData
from geexp.training.callbacks import LastCheckpoint
from geexp.training.checkpoints import AtomicCheckpointIO
from tests.support.configuration import train_config


class Witness(pl.LightningModule):
    def __init__(self, record: Path, end: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.record, (self.how, _, number) = record, end.partition(":")
        self.number = int(number or 0)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        digest = hashlib.sha256(images.contiguous().numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        with self.record.open("a") as file:
            file.write(f"{self.global_step} {self.current_epoch} {digest}\n")
        return nn.functional.cross_entropy(self.layer(images.mean((2, 3))), labels)

    def validation_step(self, batch, batch_idx):
        pass

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.how in ("step", "saved") and self.global_step == self.number:
            if self.how == "saved":
                self.trainer.save_checkpoint(self.record.parent / "last.ckpt")
            self.die()

    def on_train_epoch_start(self):
        if self.how == "epoch" and self.current_epoch == self.number:
            self.die()

    def die(self):
        self.trainer.strategy.barrier()
        os.kill(os.getpid(), signal.SIGKILL)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(images: str, run: str, world: int, feed: dict, end: str) -> None:
    folder, rank = Path(run), int(os.environ.get("RANK", 0))
    config = train_config("data=imagenet", f"data.root={images}", "data.num_classes=3", "data.image_size=32")
    data = ImageData(config.data, FeedConfig(**feed), batch_size=4, seed=7)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=4,
        logger=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[LastCheckpoint(folder, every_n_steps=5, stop=lambda: 0)],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    last = folder / "last.ckpt"
    witness = Witness(folder / f"rank{rank}.txt", end)
    trainer.fit(witness, data, ckpt_path=last if last.exists() else None, weights_only=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[5])
