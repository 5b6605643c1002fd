"""Between two steps, and after a validation: has the loss broken, has a signal come? Every rank learns it at once."""

import hashlib
import json
import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from geexp.config.errors import ConfigError, DivergedError, TrainingError
from geexp.runs.identity import flat
from geexp.training.checkpoints import newest_checkpoint
from geexp.training.loss_watch import is_finite
from geexp.training.stopping import StopSignals


class SafePoints(pl.Callback):
    """Stops a training that has diverged before another checkpoint is written, or whose schedule is over.

    ``stop`` is the signal that all ranks have agreed to obey at this point, or 0; the last checkpoint obeys it.

    Args:
        signals: what this process was asked.
        saves_every: steps between checkpoints within an epoch, each of which must be known to be sound.
        config: what this process trains, which must be what all the others train.
    """

    def __init__(self, signals: StopSignals, *, saves_every: int | None, config: dict[str, Any]) -> None:
        self.signals, self.saves_every, self.config = signals, saves_every, config
        self.stop = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.take()  # Lightning's own handler saves nothing and ends with exit code 0
        self.signals.training = True
        # Asking a GPU for a number makes it wait; asking now and then does not.
        self._every = 1 if trainer.strategy.root_device.type == "cpu" else 10
        if dist.is_available() and dist.is_initialized():
            require_one_configuration(self.config)
            self._require_one_start(trainer)
        self._end_of_schedule(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # within a step
        self._end_of_schedule(trainer, pl_module)
        step = trainer.global_step
        saving = self.saves_every is not None and step % self.saves_every == 0
        if saving or step % self._every == 0:
            self._agree(trainer, pl_module, saving=saving)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.signals.training:
            self._agree(trainer, pl_module, saving=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.signals.training:
            self._end_of_schedule(trainer, pl_module)
            self._agree(trainer, pl_module, saving=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.training = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.signals.training = False

    def _end_of_schedule(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.rate.over(trainer.global_step):
            trainer.should_stop = True  # Lightning validates what was trained, then ends

    def _require_one_start(self, trainer: pl.Trainer) -> None:
        """Every rank looks for its checkpoint by itself, on a disk that may not be one and the same."""
        step = trainer.global_step
        ends = torch.tensor([step, -step], device=trainer.strategy.root_device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        latest, earliest = ends[0].item(), -ends[1].item()
        if latest != earliest:
            raise TrainingError(
                f"the processes go on from different checkpoints, this one from step {step}, others from step "
                f"{earliest} or {latest}: the run's folder must be the same one on every node."
            )

    def _agree(self, trainer: pl.Trainer, pl_module: Any, *, saving: bool) -> None:
        asked = self.signals.received  # which can change at any moment
        sound = is_finite(pl_module) if saving or asked else True  # looked at when a checkpoint comes next
        broken = [pl_module.loss_watch.first(), 0 if sound else trainer.global_step]
        first = [-step if step else -math.inf for step in broken]  # of all ranks the first step is the highest number
        flags = torch.tensor([asked, *first], dtype=torch.float32)
        if dist.is_available() and dist.is_initialized():
            flags = flags.to(trainer.strategy.root_device)
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        received, loss, weights = flags.tolist()
        if max(loss, weights) > -math.inf:
            what = f"weights are not finite after step {-weights:.0f}"
            if loss > -math.inf:
                what = f"training loss is not finite at step {-loss:.0f}"
            raise DivergedError(
                f"the {what}, in epoch {trainer.current_epoch + 1} (learning rate {pl_module.lr:g}): the run has "
                f"diverged. {newest_checkpoint(trainer)} Try a lower optim.lr, or a warm-up."
            )
        self.stop = int(received)


# The images may lie elsewhere on every node.
_MAY_DIFFER = ("data.root", "feed.pack")


def require_one_configuration(config: dict[str, Any]) -> None:
    """Every rank has read its own configuration; nothing is trained unless they are all the same.

    Raises:
        ConfigError: in every rank, naming the keys that differ and the values of each rank.
    """
    ours = {key: value for key, value in flat(config).items() if key not in _MAY_DIFFER}
    digest = hashlib.sha256(json.dumps(ours, sort_keys=True, default=str).encode()).hexdigest()
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    if len(set(digests)) == 1:
        return
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, ours)
    keys = sorted({key for leaves in theirs for key in leaves})
    different = [key for key in keys if len({str(leaves.get(key)) for leaves in theirs}) > 1]
    said = "; ".join(f"{key}: {', '.join(str(leaves.get(key)) for leaves in theirs)}" for key in different)
    raise ConfigError(
        f"the {len(theirs)} processes of this training were started with different configurations, from rank 0 on: "
        f"{said}. Start all of them by one command."
    )
