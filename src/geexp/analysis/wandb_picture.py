"""The picture of an analysis, logged to the W&B run of the training."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geexp.config.errors import ConfigError
from geexp.config.schema import LoggerConfig
from geexp.runs.run_files import LAST, checkpoint_folder


@dataclass(frozen=True)
class WandbRun:
    """The W&B run of a run's folder."""

    folder: Path
    run_id: str
    logger: LoggerConfig


def wandb_run_of(folder: Path) -> WandbRun:
    """The run that the folder's last checkpoint names.

    Raises:
        ConfigError: if the run was trained with another logger.
        DataError: if it has no checkpoint.
    """
    from geexp.training.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(checkpoint_folder(folder) / LAST)
    logger = checkpoint.config.logger
    if logger.name != "wandb":
        raise ConfigError(
            f"wandb=true: {folder} was trained with logger={logger.name}, so it has no run at W&B. Leave wandb out."
        )
    return WandbRun(folder, checkpoint.info.run_id, logger)


def log_picture(run: WandbRun, key: str, pictures: Sequence[Path]) -> None:
    """Log the PNGs among ``pictures`` as ``key``; offline if no API key is configured."""
    import wandb

    from geexp.training.wandb_content import usual_mode

    mode: Any = run.logger.mode if run.logger.mode != "auto" else os.environ.get("WANDB_MODE") or usual_mode()
    experiment = wandb.init(
        project=run.logger.project,
        entity=run.logger.entity,
        id=run.run_id,
        dir=str(run.folder),
        mode=mode,
        resume="allow",
        settings=wandb.Settings(init_timeout=20, console="off", silent=True),
    )
    for picture in pictures:
        if picture.suffix == ".png":
            experiment.log({key: wandb.Image(str(picture))})
    experiment.finish()
    where = f"; to upload later: wandb sync {Path(experiment.dir).parent}" if mode == "offline" else ""
    print(f"W&B ({mode}): {key} in run {run.run_id}{where}", file=sys.stderr)
