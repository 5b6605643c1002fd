"""Callbacks that ``trainer.py`` and ``startup.py`` add to ``python -m geexp.train``.

They are in a separate file to avoid additional imports in the measured process.
"""

import json
import time
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from geexp.data.feeds import normalised
from geexp.data.module import ImageData
from geexp.training.optimizer import make_optimizer


class FirstStep(pl.Callback):
    """Writes the current time and this process's processor seconds to ``path`` after the first training step."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.path.exists():
            self.path.write_text(json.dumps({"at": time.time(), "processor": time.process_time()}), encoding="utf-8")


class BareLoop(pl.Callback):
    """After each epoch of ``steps`` steps, runs as many steps of a bare loop on a copy of the network and its own feed.

    Writes the processor seconds per step of both, for every epoch, to ``path`` as JSON.
    """

    def __init__(self, path: str, steps: int) -> None:
        self.path, self.steps = Path(path), steps
        self.seconds: dict[str, list[float]] = {"geexp.train": [], "bare loop": []}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.network = deepcopy(pl_module.model)
        self.optimizer = make_optimizer(self.network, pl_module.optim)
        self.data = ImageData(data.data, data.feed, batch_size=data.batch_size, seed=data.seed)

    def on_train_epoch_start(self, *_: Any) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.steps - 1:
            self.seconds["geexp.train"].append((time.process_time() - self.start) / self.steps)

    def on_validation_end(self, *_: Any) -> None:
        start = time.process_time()
        with torch.inference_mode(False), torch.enable_grad():
            self._train()
        self.seconds["bare loop"].append((time.process_time() - start) / self.steps)
        self.path.write_text(json.dumps(self.seconds), encoding="utf-8")

    def _train(self) -> None:
        self.network.train()
        data = self.data.data
        for images, labels in islice(self.data.train_dataloader(), self.steps):
            loss = F.cross_entropy(self.network(normalised(images, data.mean, data.std)), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
