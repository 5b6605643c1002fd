"""Loggers: CSV, TensorBoard, Weights & Biases, which must neither prompt nor block, and custom ones."""

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from geexp.config.compose import is_ours
from geexp.config.errors import ConfigError
from geexp.config.schema import TrainConfig
from geexp.registry import bound
from geexp.runs.identity import flat, network_label, run_label, run_name, run_tags
from geexp.runs.run import Result
from geexp.training.task import Charts
from geexp.training.trainer import instantiated
from geexp.training.wandb_content import (
    LABEL,
    NETWORK,
    charts,
    define_metrics,
    mode_of,
    summary,
    translate_wandb_errors,
)

log = logging.getLogger(__name__)

# Seconds to wait for uploads at the end.
PATIENCE = 60


def make_loggers(config: TrainConfig, run: Path, run_id: str) -> list[Logger]:
    """The loggers for the run in folder ``run``. A run that is resumed keeps its ``run_id``.

    Raises:
        ConfigError: for a ``_target_`` that is not a logger, or does not accept its arguments.
    """
    return [_logger(name, config, run, run_id) for name in config.logger.loggers]


def _logger(name: str, config: TrainConfig, run: Path, run_id: str) -> Logger:
    arguments = dict(config.logger.loggers[name])
    target = arguments.pop("_target_")
    if is_ours(target):
        try:
            make = bound(target, arguments, after=3)
        except ValueError as error:
            raise ConfigError(f"logger.{name}: {error}") from error
        return make(config, run, run_id)
    logger = instantiated(f"logger.{name}", OmegaConf.create(asdict(config)).logger.loggers[name], Logger)
    logger.log_hyperparams(flat(asdict(config)))
    return logger


def csv_logger(config: TrainConfig, run: Path, run_id: str) -> Logger:
    """``metrics.csv`` in a new folder for each start, since Lightning empties an existing one."""
    return CSVLogger(run, name="csv")


def tensorboard_logger(config: TrainConfig, run: Path, run_id: str) -> Logger:
    """TensorBoard's files and the configuration in ``tensorboard/<run_id>``, where a resumed run continues."""
    logger = TensorBoardLogger(run, name="tensorboard", version=run_id, default_hp_metric=False)
    logger.log_hyperparams(flat(asdict(config)))
    return logger


def wandb_logger(config: TrainConfig, run: Path, run_id: str) -> Logger:
    """A run at W&B with the id ``run_id``, or offline in the run's folder.

    Raises:
        ConfigError: if W&B rejects a setting.
    """
    try:
        json.dumps([str(run), asdict(config)], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"logger=wandb: W&B accepts UTF-8 only, and a path or another value of this run is not UTF-8 ({error}). "
            "Choose another folder, or a symbolic link to it, or logger=csv."
        ) from error
    import wandb

    logger = config.logger
    mode: Any = mode_of(logger)
    arguments: dict[str, Any] = {
        "project": logger.project,
        "entity": logger.entity,
        "group": logger.group,
        "name": run_name(config),
        "tags": run_tags(config),
        "id": run_id,
        "dir": str(run),
        "config": {NETWORK: network_label(config), LABEL: run_label(config), **flat(asdict(config))},
        "resume": "allow",
    }
    quick = wandb.Settings(init_timeout=20, console="off", silent=True)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's telemetry can block the exit of the process
    with translate_wandb_errors():
        try:
            experiment = wandb.init(mode=mode, settings=quick, **arguments)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            log.warning("W&B cannot be reached (%s); logging offline.", str(error).splitlines()[0])
            mode = "offline"
            wandb.teardown()  # the failed attempt still holds the run's id
            experiment = wandb.init(mode=mode, settings=quick, **arguments)
    if mode == "offline":
        # A resumed run has several folders, which W&B merges in their order.
        log.info("W&B offline; to upload later: wandb sync %s", run / "wandb" / f"offline-run-*-{run_id}")
    define_metrics(experiment)
    return TolerantWandb(experiment=experiment)


class TolerantWandb(WandbLogger):
    """A WandbLogger that logs a W&B failure (killed process, full disk) once and lets training continue."""

    broken = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._tolerate(lambda: super(TolerantWandb, self).log_metrics(metrics, step))

    def log_end(
        self, result: Result, history: list[dict[str, Any]], final: Charts | None, summary_metrics: tuple[str, ...]
    ) -> None:
        """Log the charts and the summary of a finished run."""
        unset = "WANDB_DATA_DIR" not in os.environ
        if unset:  # otherwise tables are stored in the user's home until they are uploaded
            os.environ["WANDB_DATA_DIR"] = str(Path(self.experiment.dir).parent)
        try:
            self._tolerate(lambda: self.experiment.log(charts(history, final)))
        finally:
            if unset:
                del os.environ["WANDB_DATA_DIR"]
        self._tolerate(lambda: self.experiment.summary.update(summary(result, summary_metrics)))

    def _tolerate(self, send: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            send()
        except Exception as error:
            self.broken = True
            log.warning(
                "W&B logging failed (%s); continuing without it. history.jsonl is complete.", error or type(error)
            )


def finish_wandb() -> None:
    """Finish the W&B run, waiting at most a minute for the server; the run's folder keeps the data."""
    import wandb

    def finish() -> None:
        try:
            wandb.finish()
        except Exception:  # W&B's process was killed, or this one is exiting
            with suppress(Exception):
                wandb.teardown()  # otherwise W&B retries at exit and fails with a traceback

    folder = Path(wandb.run.dir).parent if wandb.run is not None else ""
    waiting = threading.Thread(target=finish, daemon=True)
    waiting.start()
    waiting.join(PATIENCE)
    if waiting.is_alive():
        log.warning("W&B does not respond; to upload the rest later: wandb sync %s", folder)
