"""The DataModule of detection: a set in COCO's layout, read for training and for evaluation."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.module import share_of_ranks
from geexp.data.order import FixedOrder, TrainingOrder
from geexp.data.parallel import processors
from geexp.detection.batches import DetectionDataset, DetectionFeed
from geexp.detection.coco import CocoImages, require_same_classes
from geexp.detection.fashion_coco import make_fashion_coco


def open_split(data: DataConfig, split: str, *, train: bool) -> CocoImages:
    """One split of the configured set; the small one is made if it is not there. Raises as ``CocoImages`` does."""
    root = Path(str(data.root)).expanduser()
    if data.name == "fashion_coco_mini":
        make_fashion_coco(root)
    return CocoImages(root, split, train=train, num_classes=data.num_classes)


class DetectionData(pl.LightningDataModule):
    """Batches of images and their boxes. Evaluation shows every image of its split once over all ranks.

    Args:
        batch_size: of all ranks together.

    Raises:
        DataError, ConfigError: for a set that is not whole, or not what the configuration says.
    """

    def __init__(self, data: DataConfig, feed: FeedConfig, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data, self.feed, self.batch_size, self.seed = data, feed, batch_size, seed
        training, evaluation = data.splits
        self.training_images = open_split(data, training, train=True)
        self.evaluation_images = open_split(data, evaluation, train=False)
        require_same_classes(self.training_images, self.evaluation_images)

    def train_dataloader(self) -> DetectionFeed:
        share = share_of_ranks(self.trainer, self.batch_size, train=True)
        order = TrainingOrder(len(self.training_images), seed=self.seed, **share)
        return self._feed(self.training_images, order, flip=self.data.augmentation.flip)

    def val_dataloader(self) -> DetectionFeed:
        share = share_of_ranks(self.trainer, self.batch_size, train=False)
        return self._feed(self.evaluation_images, FixedOrder(len(self.evaluation_images), **share), flip=False)

    def account(self) -> dict[str, Any]:
        """What of the annotations is not learnt from."""
        return {"train": self.training_images.left_out, "val": self.evaluation_images.left_out}

    def _feed(self, images: CocoImages, order: TrainingOrder | FixedOrder, *, flip: bool) -> DetectionFeed:
        trainer: Any = self.trainer
        device = trainer.strategy.root_device
        workers = max(1, processors() // trainer.num_devices) if self.feed.workers is None else self.feed.workers
        dataset = DetectionDataset(images, flip=flip, seed=self.seed, decode=self.feed.decode)
        return DetectionFeed(dataset, order, workers=workers, pin=device.type == "cuda")
