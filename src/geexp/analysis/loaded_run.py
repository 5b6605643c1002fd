"""The network of a run, rebuilt from a checkpoint, with the images of the run's evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor, nn

from geexp.config.errors import ConfigError
from geexp.config.schema import AnalyzeConfig, TrainConfig
from geexp.data.datasets import open_dataset
from geexp.data.feeds import Feed, make_feed, normalised
from geexp.data.order import FixedOrder
from geexp.data.parallel import with_bar
from geexp.training.classification import Classification
from geexp.training.evaluation import checkpoint_of, data_of, restore_network
from geexp.training.trainer import translate_lightning_errors


@dataclass(frozen=True)
class LoadedRun:
    """A trained network on its device, with its run.

    ``epoch`` is that of the checkpoint; ``is_reference`` is true for the run that another one is compared with.
    """

    folder: Path
    checkpoint: Path
    model: nn.Module
    config: TrainConfig
    epoch: int
    settings: AnalyzeConfig
    fabric: Fabric
    is_reference: bool = False

    @property
    def num_classes(self) -> int:
        return self.config.data.num_classes

    @cached_property
    def image_count(self) -> int:
        """Images in one pass, over all ranks."""
        everything = self._feed.sampler.n
        return everything if self.settings.images is None else min(everything, self.settings.images)

    def batches(self, activity: str) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass: (images ``[N, C, H, W]`` normalised, labels ``[N]``) on the device, with a progress bar.

        With several ranks each gets its share; together they get every image once.
        """
        data, trainer = self.config.data, self.config.trainer
        layout = torch.channels_last if trainer.channels_last else torch.contiguous_format
        dtype = next(self.model.parameters()).dtype
        for batch in with_bar(self._feed, f"{activity}, {self.image_count:,} images"):
            images, labels = (tensor.to(self.fabric.device, non_blocking=True) for tensor in batch)
            if images.dtype == torch.uint8:
                images = normalised(images, data.mean, data.std)
            yield images.to(dtype).contiguous(memory_format=layout), labels

    @cached_property
    def _feed(self) -> Feed:
        data, feed = data_of(self.config, root=self.settings.root, workers=self.settings.workers)
        images = open_dataset(data, feed, train=self.settings.split == "train")
        fabric = self.fabric
        order = FixedOrder(
            len(images),
            batch_size=max(1, self.config.optim.batch_size // fabric.world_size),
            rank=fabric.global_rank,
            world=fabric.world_size,
            count=self.settings.images,
        )
        where: dict[str, Any] = {"device": fabric.device, "processes": self.settings.devices}
        return make_feed(images, data, feed, train=False, order=order, seed=self.config.seed, **where)


def load_run(run: str, settings: AnalyzeConfig, *, is_reference: bool = False) -> LoadedRun:
    """The network of a run's folder.

    Raises:
        DataError: if the chosen checkpoint is missing or damaged.
        ConfigError: if the device is not available.
    """
    checkpoint = checkpoint_of(run, settings.which)
    network, loaded = restore_network(Classification(), checkpoint)
    config, about = loaded.config, loaded.info
    several = settings.devices > 1
    with translate_lightning_errors():
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy="ddp" if several else "auto",
            plugins=[TorchElasticEnvironment() if several else LightningEnvironment()],
            precision=config.trainer.precision,  # type: ignore[arg-type]
        )
    fabric.launch()
    model = network.to(fabric.device)
    folder = checkpoint.parents[1]
    return LoadedRun(folder, checkpoint, model.eval(), config, about.epoch, settings, fabric, is_reference)


def require_same_images(one: LoadedRun, other: LoadedRun) -> None:
    """Networks that are compared must have been trained on the same data.

    Raises:
        ConfigError: naming what differs.
    """
    for key in ("name", "num_classes", "image_size", "evaluation_crop"):
        ours, theirs = getattr(one.config.data, key), getattr(other.config.data, key)
        if ours != theirs:
            raise ConfigError(
                f"against={other.folder}: was trained with data.{key}={theirs}, and run={one.folder} with {ours}; "
                "only networks of the same data can be compared."
            )
