"""``what=trainer``: what Lightning, our callbacks, counts and checks cost, against a bare loop over the same network.

The loop runs inside of ``python -m geexp.train``: after each epoch of a few steps it makes as many with a copy of the
network, on a feed of its own. Nothing is written down of these but how long they took.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from geexp.benchmarks.progress import progress
from geexp.benchmarks.rows import Column, Comparison, Row, Target
from geexp.config.benchmark import TrainerSettings
from geexp.data.feeds import normalised
from geexp.data.module import ImageData
from geexp.training.classifier import Classifier
from geexp.training.optimizer import make_sgd

STEPS = 6
BARE, LIGHTNING = "bare loop", "geexp.train"
_REMARKS = [
    "processor time of a step, one thread. The bare loop: batch, forward, cross-entropy, backward, fused SGD; it "
    "counts no errors, watches no loss, and answers no signal.",
]


class InterleavedLoop(pl.Callback):
    """Writes to ``path``, as JSON, the processor seconds of a step in every epoch, by whose step it was."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.seconds: dict[str, list[float]] = {LIGHTNING: [], BARE: []}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.network = deepcopy(pl_module.model)
        self.optimizer = make_sgd(self.network, pl_module.optim)
        self.data = ImageData(data.data, data.feed, batch_size=data.batch_size, seed=data.seed)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == STEPS - 1:
            self.seconds[LIGHTNING].append((time.process_time() - self.start) / STEPS)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start = time.process_time()
        with torch.inference_mode(False), torch.enable_grad():
            self._loop()
        self.seconds[BARE].append((time.process_time() - start) / STEPS)
        self.path.write_text(json.dumps(self.seconds), encoding="utf-8")

    def _loop(self) -> None:
        self.network.train()
        data = self.data.data
        for _, (images, labels) in zip(range(STEPS), self.data.train_dataloader(), strict=False):
            loss = F.cross_entropy(self.network(normalised(images, data.mean, data.std)), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def benchmark_trainer(settings: TrainerSettings) -> Comparison:
    """Train ``rounds`` short epochs, after one that does not count, in a process of its own."""
    model, batch = settings.model.name, settings.batch_size
    with tempfile.TemporaryDirectory(prefix="geexp-benchmark-") as folder, progress("training", 1) as advance:
        noted = Path(folder) / "seconds.json"
        arguments = [
            f"model={model}",
            "ge=none",
            "trainer=cpu",
            f"optim.batch_size={batch}",
            f"schedule.epochs={settings.rounds + 1}",
            "schedule.warmup=0",
            f"trainer.limit_train_batches={STEPS}",
            "trainer.limit_val_batches=1",
            "logger=none",
            f"outputs={folder}",
            "+callbacks.loop._target_=geexp.benchmarks.trainer_loop.InterleavedLoop",
            f"+callbacks.loop.path={noted}",
        ]
        command = [sys.executable, "-m", "geexp.train", *arguments]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run(command, cwd=folder, env=one_thread, **quiet)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
        advance()
        seconds = json.loads(noted.read_text(encoding="utf-8"))
    case = f"{model}, batch {batch}"
    rows = [Row(case, name, {"step": seconds[name][1:]}) for name in (BARE, LIGHTNING)]
    columns = [Column("ms a step", "step", scale=1e3), Column("/ bare", "step", against=(BARE,), digits=3)]
    demanded = Target("a step / the bare loop's", "resnet20, batch 128", LIGHTNING, "step", BARE, at_most=1.03)
    return Comparison("What training costs beyond its network", columns, rows, [demanded], _REMARKS)
