"""Loggers: none, CSV, or Weights & Biases, which must neither ask nor wait."""

import logging
import netrc
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from geexp.config.errors import ConfigError
from geexp.config.schema import LoggerConfig

log = logging.getLogger(__name__)

# Seconds to wait at the end for what W&B has not got yet.
PATIENCE = 60


def make_logger(logger: LoggerConfig, run: Path, config: dict[str, Any], run_id: str) -> Logger | None:
    """The logger of a run whose folder is ``run``, with its resolved configuration and its name at W&B."""
    if logger.name == "none":
        return None
    if logger.name == "csv":
        return CSVLogger(run, name="csv")  # a folder per start: Lightning empties one that is there already
    return _wandb(logger, run, config, run_id)


def _wandb(logger: LoggerConfig, run: Path, config: dict[str, Any], run_id: str) -> WandbLogger:
    import wandb

    mode: Any = logger.mode if logger.mode != "auto" else os.environ.get("WANDB_MODE") or usual_mode()
    if mode not in ("online", "offline", "disabled"):
        raise ConfigError(f"WANDB_MODE={mode} in the environment: allowed are online, offline and disabled.")
    arguments: dict[str, Any] = {
        "project": logger.project,
        "entity": logger.entity,
        "group": logger.group,
        "name": " ".join(run.parts[-4:]),
        "id": run_id,
        "dir": str(run),
        "config": config,
        "resume": "allow",
    }
    quick = wandb.Settings(init_timeout=20, console="off", silent=True)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its telemetry waits for the server when the process ends
    try:
        experiment = wandb.init(mode=mode, settings=quick, **arguments)
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        log.warning("W&B cannot be reached (%s); logging offline.", str(error).splitlines()[0])
        mode = "offline"
        wandb.teardown()  # the failed attempt still holds the run's id
        experiment = wandb.init(mode=mode, settings=quick, **arguments)
    if mode == "offline":
        log.info("W&B offline; to upload later: wandb sync %s", Path(experiment.dir).parent)
    return TolerantWandb(experiment=experiment)


class TolerantWandb(WandbLogger):
    """When W&B breaks down, its process killed or its disk full, this is told once, and training goes on."""

    broken = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.broken:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:
            self.broken = True
            log.warning("W&B takes no more of this run (%s); history.jsonl has all of it.", error or type(error))


def finish_wandb() -> None:
    """End the run at W&B, and wait a minute at most: a server that has gone silent keeps nobody, and what it has not
    got lies in the run's folder."""
    import wandb

    folder = Path(wandb.run.dir).parent if wandb.run is not None else ""
    waiting = threading.Thread(target=_finish, daemon=True)
    waiting.start()
    waiting.join(PATIENCE)
    if waiting.is_alive():
        log.warning("W&B does not answer; to upload later what it lacks: wandb sync %s", folder)


def _finish() -> None:
    import wandb

    try:
        wandb.finish()
    except Exception:  # of a process that was killed, or when ours has ended meanwhile
        with suppress(Exception):
            wandb.teardown()  # or it will be tried once more at exit, and fail with a traceback


def usual_mode() -> str:
    """Online for who is logged in: a key in the environment, or one for W&B's host in the netrc file."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname or ""
    try:
        return "online" if netrc.netrc(os.environ.get("NETRC")).authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"
