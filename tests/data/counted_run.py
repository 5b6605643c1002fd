"""Validates an untrained network on one rank of several and writes down what the rank counted; see test_ranks.py.

python counted_run.py <folder for the counts> <world size>
"""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch

from geexp.backbones import build_model
from geexp.config.schema import FeedConfig
from geexp.data.module import ImageData
from geexp.training.classifier import Classifier
from tests.data.configuration import train_config


def main(folder: Path, world: int) -> None:
    config = train_config("data=fashion_mnist_mini", "ge=none", "model=resnet8")
    torch.manual_seed(0)
    network = build_model("resnet8", ge="none", num_classes=10, image_size=28, in_channels=1)
    classifier = Classifier(network, config.optim, config.schedule)
    # Shares of 667, 667 and 666 images in batches of 37: 19, 19 and 18 of them.
    data = ImageData(config.data, FeedConfig("resident"), batch_size=37 * world, seed=0)
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", logger=False,
        enable_progress_bar=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.validate(classifier, data, verbose=False)
    mine = len(data.evaluation_feed.sampler.mine)
    (folder / f"{world}-{trainer.global_rank}.json").write_text(json.dumps({"mine": mine, **classifier.metrics}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
