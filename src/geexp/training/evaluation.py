"""Measure a checkpoint again: the network is rebuilt from the checkpoint alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from geexp.config.errors import DataError
from geexp.config.rules import check_feed
from geexp.config.schema import DataConfig, EvaluateConfig, FeedConfig, TrainConfig
from geexp.data.module import ImageData
from geexp.data.presence import require_data
from geexp.records.run_files import checkpoint_folder
from geexp.training.checkpoints import FORMAT, configuration_of, load_checkpoint
from geexp.training.classifier import Classifier
from geexp.training.network import build_network
from geexp.training.trainer import explained_ranks, make_trainer

_COUNTS = ("val/images", "val/top1_wrong", "val/top5_wrong")


def restore(path: Path) -> tuple[Classifier, TrainConfig, dict[str, Any]]:
    """The trained network, the configuration of its run and the metrics recorded with the checkpoint.

    Raises:
        DataError: for a file that is no checkpoint of ours, or one of another network than it says.
    """
    checkpoint = load_checkpoint(path)
    about = checkpoint[FORMAT]
    config = configuration_of(path, about)
    classifier = Classifier(
        build_network(config.model, config.ge, config.data),
        config.optim,
        config.schedule,
        channels_last=config.trainer.channels_last,
    )
    # Trained in another precision than float32, the weights are compared and loaded in it.
    classifier.to(next(value.dtype for value in checkpoint["state_dict"].values() if value.is_floating_point()))
    try:
        classifier.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise DataError(f"checkpoint {path}: its weights do not fit the network it names. {error}") from error
    if config.trainer.channels_last:
        classifier.to(memory_format=classifier.memory_format)
    return classifier, config, about


def evaluate(settings: EvaluateConfig) -> dict[str, Any]:
    """Run the network over the evaluation split; returns measured and recorded metrics and whether they are equal.

    Nothing is recorded in the checkpoint before the first epoch; ``identical`` is None then.
    """
    path = (
        Path(settings.checkpoint).expanduser() if settings.checkpoint else checkpoint_of(settings.run, settings.which)
    )
    classifier, config, about = restore(path)
    data_config, feed = data_of(config, root=settings.root, workers=settings.workers)
    data = ImageData(data_config, feed, batch_size=config.optim.batch_size, seed=config.seed)
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
        trainer.validate(classifier, data, verbose=False)
    measured = {key: value for key, value in classifier.metrics.items() if key.startswith("val/")}
    recorded = {key: value for key, value in about["metrics"].items() if key.startswith("val/")}
    return {
        "checkpoint": str(path),
        "epoch": about["epoch"],
        "measured": measured,
        "recorded": recorded,
        "identical": all(measured[key] == recorded[key] for key in _COUNTS) if recorded else None,
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
