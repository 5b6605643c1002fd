"""Stop training after a signal, at a divergence or at the end of the schedule, on all ranks after the same step."""

import math
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from geexp.config.errors import INTERRUPTED, PREEMPTED, ConfigError, DivergedError, TrainingError
from geexp.config.ranks import rank
from geexp.runs.identity import flat
from geexp.training.checkpoints import newest_checkpoint
from geexp.training.metrics import is_finite

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(SystemExit):
    """Ends the process after a signal: preempted by the cluster (exit code 75), or interrupted by Ctrl-C (130)."""

    def __init__(self, signum: int) -> None:
        by_user = signum == signal.SIGINT
        super().__init__(INTERRUPTED if by_user else PREEMPTED)
        self.signum = signum
        self.state = "interrupted" if by_user else "preempted"

    def __str__(self) -> str:
        return "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name


class StopSignals:
    """Context manager that handles SIGTERM, SIGUSR1 (a cluster's warning) and SIGINT (Ctrl-C).

    While ``training``, the signal is stored in ``received`` until the next safe point. At other times it ends the
    process immediately, as does a second Ctrl-C.
    """

    def __init__(self) -> None:
        self.received = 0
        self.training = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            for signum in _SIGNALS:
                if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
                    self._before[signum] = signal.getsignal(signum)
            if rank() == 0:
                self.take()
            else:  # other ranks wait for rank 0 inside C++ code, where Python's handlers do not run
                for number in self._before:
                    signal.signal(number, signal.SIG_DFL)
        return self

    def take(self) -> None:
        """Install the handlers; called again after Lightning has installed its own."""
        for signum in self._before:
            signal.signal(signum, self._note)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        again = bool(self.received)
        if os.getpid() != self._process:  # a forked worker; its parent handles signals to the process group
            if again and signum == signal.SIGTERM:
                os._exit(128 + signum)
            self.received = signum
            return
        if again and signum != signal.SIGINT:
            return
        self.received = signum
        if again or not self.training:
            raise KeyboardInterrupt if signum == signal.SIGINT else Stopped(signum)
        if rank() != 0:
            return
        hint = "; press Ctrl-C again to stop immediately" if signum == signal.SIGINT else ""
        print(f"\n{Stopped(signum)}: stopping after this step, with a checkpoint{hint}", file=sys.stderr, flush=True)


class SafePoints(pl.Callback):
    """Stops training at the end of the schedule, or at a divergence before another checkpoint is written.

    ``stop`` is the signal to stop at this step, equal on all ranks, or 0. Weights are checked before each checkpoint,
    every ``saves_every`` steps. All ranks must have the same ``config``.
    """

    def __init__(self, signals: StopSignals, *, saves_every: int | None, config: dict[str, Any]) -> None:
        self.signals, self.saves_every, self.config = signals, saves_every, config
        self.stop = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.take()  # Lightning's handler saves nothing and exits with code 0
        self.signals.training = True
        # Reading a number from a GPU synchronises with it, so do it rarely.
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
            trainer.should_stop = True  # Lightning validates, then ends

    def _require_one_start(self, trainer: pl.Trainer) -> None:
        """Check that all ranks resume from the same checkpoint; their disks may differ."""
        step = trainer.global_step
        ends = torch.tensor([step, -step], device=trainer.strategy.root_device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        latest, earliest = ends[0].item(), -ends[1].item()
        if latest != earliest:
            raise TrainingError(
                f"the ranks resume from different checkpoints, this one from step {step}, others from step "
                f"{earliest} or {latest}: the run's folder must be shared by all nodes."
            )

    def _agree(self, trainer: pl.Trainer, pl_module: Any, *, saving: bool) -> None:
        asked = self.signals.received  # can change at any moment
        sound = is_finite(pl_module) if saving or asked else True  # checked only before a checkpoint
        broken = [pl_module.nan_watch.first(), 0 if sound else trainer.global_step]
        # Negative: the maximum over ranks is the earliest step.
        first = [-step if step else -math.inf for step in broken]
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
                f"diverged. {newest_checkpoint(Path(trainer.default_root_dir))} Try a lower optim.lr or a warm-up."
            )
        self.stop = int(received)


# The location of the data may differ between nodes.
_MAY_DIFFER = ("data.root", "feed.pack")


def require_one_configuration(config: dict[str, Any]) -> None:
    """Compare the configurations of all ranks, since each rank composes its own.

    Raises:
        ConfigError: on every rank, naming the keys that differ and the values of each rank.
    """
    ours = {key: value for key, value in flat(config).items() if key not in _MAY_DIFFER}
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, ours)
    keys = sorted({key for leaves in theirs for key in leaves})
    different = [key for key in keys if len({str(leaves.get(key)) for leaves in theirs}) > 1]
    if not different:
        return
    values = "; ".join(f"{key}: {', '.join(str(leaves.get(key)) for leaves in theirs)}" for key in different)
    raise ConfigError(
        f"the {len(theirs)} ranks of this run were started with different configurations; by rank: "
        f"{values}. Start all of them with one command."
    )
