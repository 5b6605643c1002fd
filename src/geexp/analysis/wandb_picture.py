"""The picture of an analysis, logged to the W&B run of the training."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geexp.config.errors import ConfigError
from geexp.runs.run_files import LAST, checkpoint_folder

if TYPE_CHECKING:
    from geexp.training.checkpoints import Checkpoint


def wandb_run_of(folder: Path) -> "Checkpoint":
    """The last checkpoint in a run's folder, which names the run at W&B.

    Raises:
        ConfigError: if the run was trained with another logger.
        DataError: if it has no checkpoint.
    """
    from geexp.training.checkpoints import load_checkpoint  # only here: it imports torch

    checkpoint = load_checkpoint(checkpoint_folder(folder) / LAST)
    logger = checkpoint.config.logger.name
    if logger != "wandb":
        raise ConfigError(
            f"wandb=true: {folder} was trained with logger={logger}, so it has no run at W&B. Leave wandb out."
        )
    return checkpoint


def log_picture(run: "Checkpoint", key: str, pictures: Sequence[Path]) -> None:
    """Log the PNGs among ``pictures`` as ``key``; offline if no API key is configured."""
    import wandb

    from geexp.training.wandb_content import usual_mode

    logger = run.config.logger
    mode: Any = logger.mode if logger.mode != "auto" else os.environ.get("WANDB_MODE") or usual_mode()
    experiment = wandb.init(
        project=logger.project,
        entity=logger.entity,
        id=run.info.run_id,
        dir=str(run.path.parents[1]),
        mode=mode,
        resume="allow",
        settings=wandb.Settings(init_timeout=20, console="off", silent=True),
    )
    for picture in pictures:
        if picture.suffix == ".png":
            experiment.log({key: wandb.Image(str(picture))})
    experiment.finish()
    where = f"; to upload later: wandb sync {Path(experiment.dir).parent}" if mode == "offline" else ""
    print(f"W&B ({mode}): {key} in run {run.info.run_id}{where}", file=sys.stderr)
