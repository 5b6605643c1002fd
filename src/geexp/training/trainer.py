"""Lightning's Trainer, as every run here wants it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy

from geexp.config.errors import ConfigError, TrainingError
from geexp.config.protocol import planned_epochs
from geexp.config.schema import TrainConfig
from geexp.training.checkpoints import AtomicCheckpointIO
from geexp.training.stopping import Stopped

log = logging.getLogger(__name__)


def make_trainer(config: TrainConfig, folder: Path, **options: Any) -> pl.Trainer:
    """Lightning's Trainer for a configuration, without its own checkpoints, sanity check and sampler."""
    settings = config.trainer
    several = settings.devices * settings.nodes > 1
    for chatty in ("pytorch_lightning", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches.*log_every_n_steps.*")
    warnings.filterwarnings("ignore", message=".*You requested to overfit.*")  # the feed has done it already
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # what is logged is of all ranks already
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # our launchers say how it is used
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # a 1x1 grid has many
    epochs = planned_epochs(config)
    has_bar = any(isinstance(c, pl.callbacks.ProgressBar) for c in options.get("callbacks", []))
    with lightnings_refusals():
        trainer = pl.Trainer(
            default_root_dir=folder,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            # Statistics of BN are made equal once, before a validation, which may then have uneven shares.
            strategy=DDPStrategy(broadcast_buffers=False) if several else "auto",
            sync_batchnorm=settings.sync_batchnorm,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=config.optim.clip_norm,
            precision=settings.precision,  # type: ignore[arg-type]
            max_epochs=-1 if epochs is None else epochs,
            deterministic=settings.deterministic,
            limit_train_batches=settings.limit_train_batches,
            limit_val_batches=settings.limit_val_batches,
            overfit_batches=settings.overfit_batches,
            detect_anomaly=settings.detect_anomaly,
            profiler=_profiler(settings.profiler, folder),
            plugins=[AtomicCheckpointIO(), TorchElasticEnvironment() if several else LightningEnvironment()],
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
    if settings.sync_batchnorm and trainer.strategy.root_device.type != "cuda":
        raise ConfigError("trainer.sync_batchnorm=true: torch synchronises batch normalisation on GPUs only.")
    return trainer


def _profiler(name: str | None, folder: Path) -> Profiler | None:
    """One that writes its report into the run's folder."""
    if name is None:
        return None
    log.info("profile: %s", folder / "fit-profile.txt")
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return kinds[name](dirpath=folder, filename="profile")


@contextmanager
def lightnings_refusals() -> Iterator[None]:
    """No GPU, a share of the batches that is none, a callback without its logger: the user's to mend."""
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(f"Lightning refuses this configuration: {' '.join(str(error).split())}") from error


@contextmanager
def explained_ranks() -> Iterator[None]:
    """Of several processes one has gone; the others find nobody to talk to. At the end, all part in order."""
    try:
        yield
    except Stopped:
        _part()
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):  # gloo has no class of its own
            raise
        raise TrainingError(
            "another process of this training has failed or was killed; what it printed last, if anything, says why. "
            "The same command goes on from the last checkpoint."
        ) from error
    else:
        _part()


def _part() -> None:
    """Where no rank waits for another: a process that ends while still connected to them is aborted now and then."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
