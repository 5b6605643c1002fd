"""Measure a checkpoint again: the network is rebuilt from the checkpoint alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import nn

from geexp.config.checks import check_feed
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, EvaluateConfig, FeedConfig, TrainConfig
from geexp.data.module import ImageData
from geexp.data.presence import require_data
from geexp.runs.run_files import checkpoint_folder
from geexp.training.checkpoints import FORMAT, configuration_of, load_checkpoint
from geexp.training.classifier import Classifier
from geexp.training.network import network_of
from geexp.training.trainer import explained_ranks, make_trainer


class Trained(NamedTuple):
    """What can be measured: a module with its weights and the data for it; of which run, and what is recorded of it."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    config: TrainConfig
    about: dict[str, Any]


def restore(path: Path) -> tuple[Classifier, TrainConfig, dict[str, Any]]:
    """The trained network, the configuration of its run and the metrics recorded with the checkpoint.

    Raises:
        DataError: for a file that is no checkpoint of ours, or one of another network than it says.
        ConfigError: for a detector's.
    """
    checkpoint = load_checkpoint(path)
    about = checkpoint[FORMAT]
    config = configuration_of(path, about)
    if config.detects:
        raise ConfigError(
            f"{path} is of a run with detector={config.detector.layout}, and this needs a classifier. A detector is "
            "measured by python -m geexp.evaluate and drawn by python -m geexp.detect mode=predict."
        )
    classifier = Classifier(
        network_of(config),
        config.optim,
        config.schedule,
        channels_last=config.trainer.channels_last,
    )
    load_weights(classifier, checkpoint["state_dict"], path)
    if config.trainer.channels_last:
        classifier.to(memory_format=classifier.memory_format)
    return classifier, config, about


def load_weights(module: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Into a module of their precision, as the run had it.

    Raises:
        DataError: if they are of another network.
    """
    # Trained in another precision than float32, the weights are compared and loaded in it.
    module.to(next(value.dtype for value in weights.values() if value.is_floating_point()))
    try:
        module.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        raise DataError(f"checkpoint {path}: its weights do not fit the network it names. {error}") from error


def checkpoint_to_measure(settings: EvaluateConfig) -> Path:
    """``checkpoint``, or the one of ``run`` that is asked for."""
    if settings.checkpoint:
        return Path(settings.checkpoint).expanduser()
    return checkpoint_of(settings.run, settings.which)


def trained_classifier(path: Path, settings: EvaluateConfig) -> Trained:
    """The classifier of a checkpoint with the data that it is to be measured on.

    Raises:
        DataError, ConfigError: as ``restore`` and ``data_of`` do.
    """
    classifier, config, about = restore(path)
    data_config, feed = data_of(config, root=settings.root, workers=settings.workers)
    data = ImageData(data_config, feed, batch_size=config.optim.batch_size, seed=config.seed)
    return Trained(classifier, data, config, about)


def evaluate(trained: Trained, path: Path, settings: EvaluateConfig) -> dict[str, Any]:
    """Run the network over the evaluation split; returns measured and recorded metrics and whether they are equal.

    Nothing is recorded in the checkpoint before the first epoch; ``identical`` is None then.
    """
    module, data, config, about = trained
    quiet = replace(
        config.trainer,
        accelerator=settings.accelerator,
        devices=settings.devices,
        nodes=1,
        accumulate=1,
        sync_batchnorm=False,  # needs GPUs, and evaluation synchronises nothing
        profiler=None,
    )
    trainer = make_trainer(replace(config, trainer=quiet), path.parent, logger=False, callbacks=[])
    with explained_ranks():
        trainer.validate(module, data, verbose=False)
    metrics: dict[str, Any] = module.metrics  # type: ignore[assignment]
    measured = {key: value for key, value in metrics.items() if key.startswith("val/")}
    recorded = {key: value for key, value in about["metrics"].items() if key.startswith("val/")}
    # A loss depends on the order of its sum, what is counted does not.
    counted = [key for key in measured if key != "val/loss"]
    return {
        "checkpoint": str(path),
        "epoch": about["epoch"],
        "measured": measured,
        "recorded": recorded,
        "identical": all(measured[key] == recorded[key] for key in counted) if recorded else None,
    }


def checkpoint_of(run: str | None, which: str) -> Path:
    """The ``best`` or the ``last`` checkpoint of a run's folder, whether it is there or not.

    Raises:
        DataError: if the folder is not there.
    """
    folder = Path(str(run)).expanduser()
    if not folder.is_dir():
        raise DataError(f"run={run}: there is no such folder")
    return checkpoint_folder(folder) / f"{which}.ckpt"


def data_of(config: TrainConfig, *, root: str | None, workers: int | None) -> tuple[DataConfig, FeedConfig]:
    """The data of a run and how to read them: as in training, unless told of another folder or number of workers.

    Raises:
        DataError: if the data are not there.
    """
    data = config.data if root is None else replace(config.data, root=root)
    feed = config.feed if root is None else replace(config.feed, pack=None)
    if workers is not None and feed.name != "resident":
        feed = replace(feed, workers=workers)
    check_feed(feed, data)
    require_data(data, feed)
    return data, feed
