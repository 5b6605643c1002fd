"""Loggers: none, CSV, or Weights & Biases, which must neither ask nor wait."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from geexp.config.errors import ConfigError
from geexp.config.schema import TrainConfig
from geexp.runs.identity import flat
from geexp.runs.name import network_label, run_label, run_name, run_tags
from geexp.training.task import Ending
from geexp.training.wandb_content import LABEL, NETWORK, charts, define_metrics, summary
from geexp.training.wandb_login import usual_mode

log = logging.getLogger(__name__)

# Seconds to wait at the end for what W&B has not got yet.
PATIENCE = 60


def make_logger(config: TrainConfig, run: Path, run_id: str) -> Logger | None:
    """The logger of a run whose folder is ``run``; ``run_id`` is its name at W&B."""
    if config.logger.name == "none":
        return None
    if config.logger.name == "csv":
        return CSVLogger(run, name="csv")  # a folder per start: Lightning empties one that is there already
    return _wandb(config, run, run_id)


def _wandb(config: TrainConfig, run: Path, run_id: str) -> "TolerantWandb":
    import wandb

    logger = config.logger
    mode: Any = logger.mode if logger.mode != "auto" else os.environ.get("WANDB_MODE") or usual_mode()
    if mode not in ("online", "offline", "disabled"):
        raise ConfigError(f"WANDB_MODE={mode} in the environment: allowed are online, offline and disabled.")
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
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its telemetry waits for the server when the process ends
    try:
        experiment = wandb.init(mode=mode, settings=quick, **arguments)
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        log.warning("W&B cannot be reached (%s); logging offline.", str(error).splitlines()[0])
        mode = "offline"
        wandb.teardown()  # the failed attempt still holds the run's id
        experiment = wandb.init(mode=mode, settings=quick, **arguments)
    if mode == "offline":
        # Of a run that was interrupted there are several folders, which W&B puts together in their order.
        log.info("W&B offline; to upload later: wandb sync %s", run / "wandb" / f"offline-run-*-{run_id}")
    define_metrics(experiment)
    return TolerantWandb(experiment=experiment)


class TolerantWandb(WandbLogger):
    """When W&B breaks down, its process killed or its disk full, this is told once, and training goes on."""

    broken = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._tolerate(lambda: super(TolerantWandb, self).log_metrics(metrics, step))

    def log_end(self, result: dict[str, Any], history: list[dict[str, Any]], ending: Ending | None) -> None:
        """What a run that is complete has to show."""
        with _staging_in(Path(self.experiment.dir).parent):
            self._tolerate(lambda: self.experiment.log(charts(history, ending)))
        self._tolerate(lambda: self.experiment.summary.update(summary(result)))

    def _tolerate(self, send: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            send()
        except Exception as error:
            self.broken = True
            log.warning("W&B takes no more of this run (%s); history.jsonl has all of it.", error or type(error))


@contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """Tables wait for their upload in the user's home, unless W&B is told of another place."""
    if wandbs := os.environ.get("WANDB_DATA_DIR") is None:
        os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        if wandbs:
            del os.environ["WANDB_DATA_DIR"]


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
