"""The LightningDataModules: a data set and its feeds."""

from collections import ChainMap
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from geexp.config.errors import ConfigError
from geexp.config.protocol import share_of_batch
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.datasets import open_dataset
from geexp.data.feeds import Feed, ResumableFeed, make_feed, normalised
from geexp.data.images import Images
from geexp.data.order import FixedOrder, TrainingOrder
from geexp.data.pack import Pack
from geexp.data.record import source_of
from geexp.runs.data_record import DataRecord


class FeedData(pl.LightningDataModule):
    """A data module whose feeds record the images that they cannot read as intended."""

    training_feed: Any
    evaluation_feed: Any

    def __init__(self) -> None:
        super().__init__()
        self._earlier: dict[str, Any] | None = None  # the account before the run was resumed
        self._logged: set[str] = set()  # see ``ResumableFeed``

    def setup(self, stage: str) -> None:
        """Make the feeds, to find what is wrong with them before the training."""
        if stage == "fit":
            _ = self.training_feed
        _ = self.evaluation_feed

    def train_dataloader(self) -> ResumableFeed:
        return self.training_feed

    def val_dataloader(self) -> ResumableFeed:
        return self.evaluation_feed

    def account(self) -> dict[str, Any]:
        """Images that the feeds of all ranks could not read as intended, since the run began; every rank must call it.

        ``fallbacks`` counts images that fell back to Pillow, epoch by epoch, including those read ahead in vain;
        ``skipped`` names each skipped image once, with the reason.
        """
        mine = {
            split: {"fallbacks": feed.fallbacks, "skipped": {one.name: one.reason for one in feed.skipped.values()}}
            for split, feed in (("train", self.training_feed), ("val", self.evaluation_feed))
        }
        accounts = [mine]
        if dist.is_available() and dist.is_initialized():
            accounts = [{}] * dist.get_world_size()
            dist.all_gather_object(accounts, mine)
        if self._earlier is not None:
            accounts.append(self._earlier)
        return {
            split: {
                "fallbacks": sum(account[split]["fallbacks"] for account in accounts),
                "skipped": dict(ChainMap(*(account[split]["skipped"] for account in accounts))),
            }
            for split in mine
        }

    def state_dict(self) -> dict[str, Any]:
        return self.account()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = state_dict


class ImageData(FeedData):
    """Batches of (images ``[N, C, H, W]`` float, normalised on the device; labels ``[N]`` int64).

    Training drops the last, smaller batch; evaluation never does, and shows every image once over all ranks.

    Args:
        batch_size: of all ranks together.
    """

    def __init__(self, data: DataConfig, feed: FeedConfig, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data, self.feed, self.batch_size, self.seed = data, feed, batch_size, seed

    @cached_property
    def training_images(self) -> Images:
        images = open_dataset(self.data, self.feed, train=True)
        if len(images) < self.batch_size:
            raise ConfigError(
                f"optim.batch_size={self.batch_size}: {self.data.name} has only {len(images)} training images."
            )
        return images

    @cached_property
    def evaluation_images(self) -> Images:
        return open_dataset(self.data, self.feed, train=False)

    @cached_property
    def training_feed(self) -> Feed:
        images, share = self.training_images, share_of_ranks(self.trainer, self.batch_size, train=True)
        repeat = self.trainer is not None and bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]
        return self._feed(images, TrainingOrder(len(images), seed=self.seed, repeat=repeat, **share), train=True)

    @cached_property
    def evaluation_feed(self) -> Feed:
        images, share = self.evaluation_images, share_of_ranks(self.trainer, self.batch_size, train=False)
        return self._feed(images, FixedOrder(len(images), **share), train=False)

    def transfer_batch_to_device(
        self, batch: tuple[Tensor, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        if device.type != "cuda" or batch[0].device == device:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        with torch.cuda.stream(self._copies):  # while the device still computes the steps before
            images, labels = super().transfer_batch_to_device(batch, device, dataloader_idx)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(self._copies)
        for tensor in (images, labels):
            tensor.record_stream(computing)
        return images, labels

    @cached_property
    def _copies(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        if images.dtype == torch.uint8:
            images = normalised(images, self.data.mean, self.data.std)
            if self.trainer is not None:  # Lightning converts what comes as floating point only
                images = self.trainer.precision_plugin.convert_input(images)
        return images, labels

    def record(self) -> DataRecord:
        train, val = self.training_images, self.evaluation_images
        return DataRecord.of(source_of(self.data, self.feed), train.classes, train.record(), val.record())

    def account(self) -> dict[str, Any]:
        account = super().account()
        for split, images in (("train", self.training_images), ("val", self.evaluation_images)):
            if isinstance(images, Pack):
                account[split]["skipped"] |= dict.fromkeys(images.left_out, "left out of the pack")
        return account

    def _feed(self, images: Images, order: TrainingOrder | FixedOrder, *, train: bool) -> Feed:
        trainer = self.trainer
        device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
        processes = 1 if trainer is None else trainer.num_devices
        feed = make_feed(
            images, self.data, self.feed, train=train, order=order, seed=self.seed, device=device, processes=processes
        )
        feed.logged = self._logged
        return feed


def share_of_ranks(trainer: pl.Trainer | None, batch_size: int, *, train: bool) -> dict[str, Any]:
    """The order's arguments that depend on the ranks; ``batch_size`` is that of all ranks together."""
    if trainer is None:
        return {"batch_size": batch_size}
    ranks = {"rank": trainer.global_rank, "world": trainer.world_size}
    if not train:  # to any number of devices each image is shown once
        return {"batch_size": max(1, batch_size // trainer.world_size), **ranks}
    steps_of = trainer.accumulate_grad_batches
    return {"batch_size": share_of_batch(batch_size, trainer.world_size, steps_of), "accumulate": steps_of, **ranks}
