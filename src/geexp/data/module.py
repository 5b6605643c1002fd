"""The DataModule: a data set and a feed, as Lightning wants them."""

from functools import cached_property
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from geexp.config.errors import ConfigError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.datasets import open_dataset
from geexp.data.reference_feed import EpochSampler, TransformedImages, evaluation_transform, training_transform


class ImageData(pl.LightningDataModule):
    """Batches of (images ``[N, C, H, W]`` float, normalised; labels ``[N]`` int64).

    Training drops the last, smaller batch, evaluation never does.
    """

    def __init__(self, data: DataConfig, feed: FeedConfig, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data, self.feed, self.batch_size, self.seed = data, feed, batch_size, seed

    @cached_property
    def training_images(self) -> TransformedImages:
        images = TransformedImages(open_dataset(self.data, train=True), training_transform(self.data), self.seed)
        if len(images) < self.batch_size:
            raise ConfigError(
                f"optim.batch_size={self.batch_size}: {self.data.name} has only {len(images)} training images."
            )
        return images

    @cached_property
    def evaluation_images(self) -> TransformedImages:
        return TransformedImages(open_dataset(self.data, train=False), evaluation_transform(self.data), self.seed)

    def train_dataloader(self) -> DataLoader:
        # A resumed run starts in the middle of the order of epochs, and workers fetch before anyone sets the epoch.
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        sampler = EpochSampler(len(self.training_images), seed=self.seed, epoch=epoch)
        return self._loader(self.training_images, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.evaluation_images)

    def _loader(self, images: TransformedImages, **options: Any) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            num_workers=self.feed.workers,
            persistent_workers=self.feed.workers > 0,
            **options,
        )
