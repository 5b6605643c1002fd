"""All parts of Lightning and torch.distributed that are undocumented or differ by version; its test checks them."""

import inspect
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel


class DescribedProgressBar(RichProgressBar):
    """Lightning's progress bar with ``describe_epoch`` as the description of the epoch's bar."""

    def describe_epoch(self, current_epoch: int) -> str:
        raise NotImplementedError

    def _get_train_description(self, current_epoch: int) -> str:
        return self.describe_epoch(current_epoch)


def was_interrupted(trainer: pl.Trainer) -> bool:
    """Whether a SystemExit comes from a KeyboardInterrupt that Lightning converted."""
    return trainer.interrupted


def without_sigterm_broadcast(trainer: pl.Trainer) -> None:
    """Lightning would ask rank 0 before every step whether it has received SIGTERM, and wait for the GPU to answer.

    ``SafePoints`` agrees on signals, of all ranks.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


class _OneStreamDDP(DDPStrategy):
    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        # Lightning builds DDP within a stream of its own. There gradients would be accumulated, and every parameter's
        # would wait for the stream of the backward pass.
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)


def ddp_strategy() -> DDPStrategy:
    """DDP that does not broadcast buffers (BN statistics) in forward passes, nor copies gradients into buckets.

    From torch 2.13 on the option has another name, and DDP broadcasts rank 0's buffers once, when it is built. That
    changes nothing: they are equal on all ranks then, either initial or from the same checkpoint.
    """
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return _OneStreamDDP(gradient_as_bucket_view=True, **options)


def leave_process_group(*, together: bool) -> None:
    """Destroy the process group, if there is one. Otherwise a process may abort at exit, and NCCL warns.

    Args:
        together: all ranks leave it now. If not, NCCL would wait for the others, so its communicators are aborted.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    if together or dist.get_backend() != dist.Backend.NCCL:
        dist.destroy_process_group()
    else:
        distributed_c10d._abort_process_group()
