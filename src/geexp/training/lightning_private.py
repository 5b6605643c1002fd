"""All parts of Lightning that are undocumented or differ between versions of torch; its test checks them."""

import inspect

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.strategies import DDPStrategy
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


def ddp_strategy() -> DDPStrategy:
    """DDP that does not broadcast buffers (BN statistics) in forward passes.

    From torch 2.13 on the option has another name, and DDP broadcasts rank 0's buffers once, when it is built. That
    changes nothing: they are equal on all ranks then, either initial or from the same checkpoint.
    """
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
        return DDPStrategy(forward_sync_buffers=False)
    return DDPStrategy(broadcast_buffers=False)
