"""Evaluate a checkpoint; the network is rebuilt from the checkpoint alone."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geexp.config.checks import check_feed
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, EvaluateConfig, FeedConfig, TrainConfig
from geexp.data.presence import require_data
from geexp.runs.run import Run
from geexp.training.callbacks import EvaluationBar
from geexp.training.checkpoints import Checkpoint, load_checkpoint
from geexp.training.task import Task
from geexp.training.trainer import make_trainer, translate_ddp_errors


@dataclass(frozen=True)
class Evaluation:
    """The ``val/…`` metrics of a checkpoint, ``measured`` now and ``recorded`` in the checkpoint.

    ``identical`` compares all but the loss, which depends on the order of summation; None if nothing was recorded.
    """

    checkpoint: str
    epoch: int
    measured: dict[str, Any]
    recorded: dict[str, Any]
    identical: bool | None


def evaluate(task: Task, checkpoint: Checkpoint, settings: EvaluateConfig) -> Evaluation:
    """Run the network of a checkpoint on the evaluation split of its run.

    The run's ``trainer.limit_val_batches`` applies here, too.

    Raises:
        DataError: for missing data or other classes, or weights that do not match the network.
        ConfigError: if the device is not available.
    """
    config = checkpoint.config
    data_config, feed = data_of(config, root=settings.root, workers=settings.workers)
    trainer_config = replace(
        config.trainer,
        accelerator=settings.accelerator,
        devices=settings.devices,
        nodes=1,
        accumulate=1,
        sync_batchnorm=False,  # needs GPUs, and evaluation does not synchronise
        profiler=None,
    )
    data: Any = task.data(replace(config, data=data_config, feed=feed))
    data.record().require_same_classes(checkpoint.path.absolute().parents[1])
    module = task.module(config, data, pretrained=False)
    _load_weights(module, checkpoint.weights, checkpoint.path)
    if config.trainer.compile:  # compiled code rounds in other places, as training recorded it
        module.model.compile(mode=config.trainer.compile_mode)
    config = replace(config, trainer=trainer_config)
    trainer = make_trainer(config, checkpoint.path.parent, logger=False, callbacks=[EvaluationBar()])
    with translate_ddp_errors():
        trainer.validate(module, data, verbose=False)
    measured, recorded = (
        {key: value for key, value in metrics.items() if key.startswith("val/")}
        for metrics in (module.metrics, checkpoint.info.metrics)
    )
    counted = [key for key in measured if key != "val/loss"]
    identical = all(measured[key] == recorded[key] for key in counted) if recorded else None
    return Evaluation(str(checkpoint.path), checkpoint.info.epoch, measured, recorded, identical)


def restore_network(task: Task, path: Path) -> tuple[nn.Module, Checkpoint]:
    """The trained network of a checkpoint, on the CPU, in the precision of its weights.

    Raises:
        DataError: for a file that is not a run's checkpoint, or whose weights do not match its network.
        ConfigError: for a detector if a classifier is needed, or vice versa.
    """
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    if config.detects != task.detects:
        wanted, hint = "detector", ""
        if not task.detects:
            wanted, hint = "classifier", " python -m geexp.detect mode=predict draws its detections."
        raise ConfigError(
            f"{path} is from a run with detector={config.detector.layout}, but this command needs a {wanted}. "
            f"Evaluate it with python -m geexp.evaluate.{hint}"
        )
    network = task.network(config)
    weights = {name.removeprefix("model."): value for name, value in checkpoint.weights.items()}
    _load_weights(network, weights, path)
    return network, checkpoint


def _load_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load the weights and convert the module to their precision; converting the weights would change them."""
    module.to(next(value.dtype for value in weights.values() if value.is_floating_point()))
    try:
        module.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        raise DataError(f"checkpoint {path}: its weights do not match its network. {error}") from error


def checkpoint_of(run: str | None, which: str) -> Path:
    """The path of the ``best`` or ``last`` checkpoint in the folder of a run; the file may be missing.

    Raises:
        DataError: if the folder is missing.
    """
    folder = Path(str(run))
    if not folder.is_dir():
        raise DataError(f"run={run}: there is no such folder")
    return Run(folder).checkpoint(f"{which}.ckpt")


def data_of(config: TrainConfig, *, root: str | None, workers: int | None) -> tuple[DataConfig, FeedConfig]:
    """The data and feed configuration of a run, with another root folder or number of workers if given.

    Raises:
        DataError: if the data are missing.
    """
    data = config.data if root is None else replace(config.data, root=root)
    feed = config.feed if root is None else replace(config.feed, pack=None)
    if workers is not None and feed.name != "resident":
        feed = replace(feed, workers=workers)
    check_feed(feed, data)
    require_data(data, feed)
    return data, feed
