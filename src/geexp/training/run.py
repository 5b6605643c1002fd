"""One run, from a checked configuration to ``result.json``."""

import logging
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from rich.console import Console
from torch import nn

from geexp.backbones import build_model
from geexp.complexity_count import count_complexity
from geexp.config.errors import ConfigError, DataError
from geexp.config.identity import ge_slug, identity, require_same_identity
from geexp.config.schema import DataConfig, GatherExciteConfig, ModelConfig, TrainConfig
from geexp.config.validation import validated
from geexp.data.module import ImageData
from geexp.data.reading import explained_workers
from geexp.records.config_tree import as_text, config_tree
from geexp.records.environment import environment, peak_memory
from geexp.records.run_files import HISTORY, RESULT, read_history, write_json
from geexp.training.checkpoints import (
    BEST,
    FORMAT,
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    RunInCheckpoint,
    checkpoint_folder,
    load_checkpoint,
)
from geexp.training.classifier import Classifier
from geexp.training.history import History
from geexp.training.loggers import make_logger

log = logging.getLogger(__name__)


def train(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train, or go on with, the run whose folder is ``folder``; returns what was written to its ``result.json``.

    Raises:
        ConfigError: for ``resume=true`` without a checkpoint, and what the data set or the model refuses.
        KeyboardInterrupt: after Ctrl-C, when the last checkpoint has been named.
    """
    plain = asdict(config)
    last = LastCheckpoint(checkpoint_folder(folder), every_n_steps=config.trainer.checkpoint_every_n_steps)
    resume_from = _resume_from(config, last.path)
    callbacks = [_callback(name, target) for name, target in config.callbacks.items() if target is not None]
    tree = config_tree(plain, title=f"{config.model.name} {ge_slug(config.ge, config.model)}")
    if not _in_sweep():  # where each job would repeat it
        Console(stderr=True).print(tree)
    (folder / "config_tree.txt").write_text(as_text(tree), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")

    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = ImageData(config.data, config.feed, batch_size=config.optim.batch_size, seed=config.seed)
    _ = data.training_images, data.evaluation_images  # whatever is wrong with the data is said now
    model = build_network(config.model, config.ge, config.data)
    if config.trainer.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.trainer.compile:
        model.compile()
    classifier = Classifier(model, config.optim, config.schedule, channels_last=config.trainer.channels_last)
    log.info("%s: %s", "going on with" if resume_from else "training into", folder)

    logger = make_logger(config.logger, folder, plain)
    try:
        trainer = make_trainer(
            config,
            folder,
            logger=logger or False,
            callbacks=[History(folder / HISTORY), RunInCheckpoint(plain), *callbacks, last],
        )
        if resume_from is None:  # what an earlier run left goes only now that this one can start
            (folder / HISTORY).unlink(missing_ok=True)
            (folder / RESULT).unlink(missing_ok=True)
            last.path.with_name(BEST).unlink(missing_ok=True)
        _fit(trainer, classifier, data, resume_from, last.path)
        result = _result(config, folder, classifier, data, callbacks)
        if logger is not None:
            logger.log_metrics(_summary(result))
        write_json(folder / RESULT, result)
    finally:
        if config.logger.name == "wandb":
            import wandb

            wandb.finish()
    return result


def _callback(name: str, target: dict[str, Any]) -> pl.Callback:
    try:
        callback = instantiate(target)
    except InstantiationException as error:
        raise ConfigError(f"callbacks.{name}: {' '.join(str(error.__cause__ or error).split())}") from error
    if not isinstance(callback, pl.Callback):
        raise ConfigError(f"callbacks.{name}: {target['_target_']} makes a {type(callback).__name__}, not a callback.")
    return callback


def build_network(model: ModelConfig, ge: GatherExciteConfig, data: DataConfig) -> nn.Module:
    """The network that a configuration describes, for the images of its data set."""
    settings = asdict(ge)
    try:
        return build_model(
            **asdict(model),
            **{"ge": settings.pop("variant"), **settings},
            num_classes=data.num_classes,
            image_size=data.image_size,
            in_channels=data.channels,
        )
    except ValueError as error:  # what only the built network can know, such as a reduction beyond its channels
        raise ConfigError(f"model={model.name} ge={ge.variant}: {error}.") from error


def make_trainer(config: TrainConfig, folder: Path, **options: Any) -> pl.Trainer:
    """Lightning's Trainer for a configuration, without its own checkpoints, sanity check and sampler."""
    settings = config.trainer
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches.*log_every_n_steps.*")
    warnings.filterwarnings("ignore", message=".*You requested to overfit.*")  # the feed has done it already
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated.*")
    has_bar = any(isinstance(c, pl.callbacks.ProgressBar) for c in options.get("callbacks", []))
    with _lightnings_refusals():
        trainer = pl.Trainer(
            default_root_dir=folder,
            accelerator=settings.accelerator,
            devices=1,
            precision=settings.precision,  # type: ignore[arg-type]
            max_epochs=settings.max_epochs,
            deterministic=settings.deterministic,
            limit_train_batches=settings.limit_train_batches,
            limit_val_batches=settings.limit_val_batches,
            overfit_batches=settings.overfit_batches,
            detect_anomaly=settings.detect_anomaly,
            profiler=_profiler(settings.profiler, folder),
            plugins=[AtomicCheckpointIO()],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=True,
            enable_model_summary=False,
            enable_progress_bar=has_bar,
            **options,
        )
    if trainer.precision != settings.precision:  # Lightning takes another with a warning only
        raise ConfigError(
            f"trainer.precision={settings.precision}: this device cannot; Lightning would take {trainer.precision}."
        )
    return trainer


def _profiler(name: str | None, folder: Path) -> Profiler | None:
    """One that writes its report into the run's folder."""
    if name is None:
        return None
    log.info("profile: %s", folder / "fit-profile.txt")
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return kinds[name](dirpath=folder, filename="profile")


@contextmanager
def _lightnings_refusals() -> Iterator[None]:
    """No GPU, a share of the batches that is none, a callback without its logger: the user's to mend."""
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(f"Lightning refuses this configuration: {' '.join(str(error).split())}") from error


def _resume_from(config: TrainConfig, last: Path) -> Path | None:
    if config.force or config.resume is False:
        return None
    if last.is_file():
        try:
            recorded = load_checkpoint(last)[FORMAT]["config"]
        except DataError as error:
            raise DataError(f"{error} To start this run over: resume=false") from error
        require_same_identity(last.parents[1], identity(validated(TrainConfig, recorded)), config)
        return last
    if config.resume is True:
        raise ConfigError(f"resume=true: there is no checkpoint at {last}. Leave it out to start this run.")
    return None


def _fit(trainer: pl.Trainer, classifier: Classifier, data: ImageData, resume_from: Path | None, last: Path) -> None:
    try:
        with _lightnings_refusals(), explained_workers():
            trainer.fit(classifier, data, ckpt_path=resume_from, weights_only=True)
    except SystemExit as stop:  # Lightning turns Ctrl-C into one
        if not trainer.interrupted:
            raise
        if last.is_file():
            done = len(read_history(last.parents[1]))
            print(
                f"\nInterrupted in epoch {trainer.current_epoch + 1}; the {done} finished epochs are safe in {last}\n"
                f"Go on with: {_go_on_command()}",
                file=sys.stderr,
            )
        raise KeyboardInterrupt from stop


def _go_on_command() -> str:
    """The command that was typed, made to go on. In a sweep the other jobs have nothing to go on with yet."""
    arguments = [a for a in sys.argv[1:] if not a.startswith(("force=", "resume="))]
    return _command([*arguments, *([] if _in_sweep() else ["resume=true"])])


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _command(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "geexp.train", *arguments])


def _result(
    config: TrainConfig, folder: Path, classifier: Classifier, data: ImageData, callbacks: list[pl.Callback]
) -> dict[str, Any]:
    rows = read_history(folder)
    best = next((c.best for c in callbacks if isinstance(c, BestCheckpoint)), None)
    shape = (config.data.channels, config.data.image_size, config.data.image_size)
    return {
        "format": 1,
        "status": "completed",
        "identity": identity(config),
        "metrics": {"last": rows[-1], "best": best or min(rows, key=lambda row: row["val/top1_error"])},
        "epochs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "complexity": count_complexity(classifier.model, shape).as_dict(),
        "feed": {"name": config.feed.name, **data.account()},
        "peak_memory_bytes": peak_memory(),
        "config": asdict(config),
        "command": _command(HydraConfig.get().overrides.task if HydraConfig.initialized() else sys.argv[1:]),
        **environment(),
    }


def _summary(result: dict[str, Any]) -> dict[str, float]:
    complexity = result["complexity"]
    return {
        "best/top1_error": result["metrics"]["best"]["val/top1_error"],
        "last/top1_error": result["metrics"]["last"]["val/top1_error"],
        "params": complexity["params"],
        "macs": complexity["macs"],
    }
