"""Loggers: none, CSV, or Weights & Biases, which must neither ask nor wait."""

import logging
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from geexp.config.errors import ConfigError
from geexp.config.schema import LoggerConfig

log = logging.getLogger(__name__)


def make_logger(logger: LoggerConfig, run: Path, config: dict[str, Any]) -> Logger | None:
    """The logger of a run whose folder is ``run``, with its resolved configuration."""
    if logger.name == "none":
        return None
    if logger.name == "csv":
        return CSVLogger(run, name="csv")  # a folder per start: Lightning empties one that is there already
    return _wandb(logger, run, config)


def _wandb(logger: LoggerConfig, run: Path, config: dict[str, Any]) -> WandbLogger:
    import wandb

    mode: Any = logger.mode if logger.mode != "auto" else os.environ.get("WANDB_MODE") or usual_mode()
    if mode not in ("online", "offline", "disabled"):
        raise ConfigError(f"WANDB_MODE={mode} in the environment: allowed are online, offline and disabled.")
    # The run's folder names what determines its result; the same words make a stable id, so a resumed run goes on.
    words = run.parts[-5:]
    arguments: dict[str, Any] = {
        "project": logger.project,
        "entity": logger.entity,
        "group": logger.group,
        "name": " ".join(words[1:]),
        "id": "-".join(words)[-100:],
        "dir": str(run),
        "config": config,
        "resume": "allow",
    }
    quick = wandb.Settings(init_timeout=20, console="off", silent=True)
    try:
        experiment = wandb.init(mode=mode, settings=quick, **arguments)
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        log.warning("W&B cannot be reached (%s); logging offline.", str(error).splitlines()[0])
        mode = "offline"
        wandb.teardown()  # the failed attempt still holds the run's id
        experiment = wandb.init(mode=mode, settings=quick, **arguments)
    if mode == "offline":
        log.info("W&B offline; to upload later: wandb sync %s", Path(experiment.dir).parent)
    return WandbLogger(experiment=experiment)


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
