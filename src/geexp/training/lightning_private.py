"""All undocumented parts of Lightning that geexp uses; tests/training/test_lightning_private.py checks them."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class DescribedProgressBar(RichProgressBar):
    """Lightning's progress bar with ``describe_epoch`` as the description of the epoch's bar."""

    def describe_epoch(self, current_epoch: int) -> str:
        raise NotImplementedError

    def _get_train_description(self, current_epoch: int) -> str:
        return self.describe_epoch(current_epoch)


def was_interrupted(trainer: pl.Trainer) -> bool:
    """Whether a SystemExit comes from a KeyboardInterrupt that Lightning converted."""
    return trainer.interrupted
