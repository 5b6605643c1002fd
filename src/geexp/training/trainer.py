"""Construction of Lightning's Trainer, and translation of its errors."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from geexp.config.errors import ConfigError, TrainingError
from geexp.config.protocol import planned_epochs
from geexp.config.schema import TrainConfig
from geexp.training.checkpoints import AtomicCheckpointIO
from geexp.training.lightning_private import ddp_strategy, leave_process_group, without_sigterm_broadcast
from geexp.training.stopping import Stopped

log = logging.getLogger(__name__)

_IGNORED_WARNINGS = (
    ".*does not have many workers.*",
    ".*The number of training batches.*log_every_n_steps.*",
    ".*You requested to overfit.*",  # geexp's feeds implement overfit_batches
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
    ".*sync_dist=True.*",  # logged values are already reduced over all ranks
    ".*`srun` command is available.*",  # geexp's launchers use it
    "Grad strides do not match bucket view strides",  # a 1x1 map has ambiguous strides
)


def make_trainer(config: TrainConfig, folder: Path, **options: Any) -> pl.Trainer:
    """Lightning's Trainer for a configuration, without Lightning's checkpoints, sanity check and sampler.

    Raises:
        ConfigError: for a device or precision that this machine does not support.
    """
    settings = config.trainer
    several = settings.devices * settings.nodes > 1
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    epochs = planned_epochs(config)
    has_bar = any(isinstance(c, pl.callbacks.ProgressBar) for c in options.get("callbacks", []))
    with translate_lightning_errors():
        trainer = pl.Trainer(
            default_root_dir=folder,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            # TrainingModule broadcasts BN statistics once before validation, whose batches may be uneven across ranks.
            strategy=ddp_strategy() if several else "auto",
            sync_batchnorm=settings.sync_batchnorm,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=config.optim.clip_norm,
            precision=settings.precision,  # type: ignore[arg-type]
            max_epochs=-1 if epochs is None else epochs,
            deterministic=settings.deterministic,
            # Timing the convolutions pays off for maps of constant size; a detector's vary from batch to batch.
            benchmark=not settings.deterministic and not config.detects,
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
    if trainer.precision != settings.precision:  # Lightning only warns and uses another precision
        raise ConfigError(
            f"trainer.precision={settings.precision}: not supported on this device; Lightning would use "
            f"{trainer.precision}."
        )
    without_sigterm_broadcast(trainer)
    if trainer.strategy.root_device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions have it by default
    # Filling all new memory finds reads of uninitialised memory and doubles the kernels of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if settings.sync_batchnorm and trainer.strategy.root_device.type != "cuda":
        raise ConfigError("trainer.sync_batchnorm=true: torch synchronises batch normalisation on GPUs only.")
    return trainer


def instantiated(key: str, target: dict[str, Any], kind: type) -> Any:
    """The object at the ``_target_`` under ``key``, such as a Lightning callback or logger (``kind``).

    Raises:
        ConfigError: if it does not exist, does not accept its arguments, or is something else.
    """
    try:
        made = instantiate(target, _convert_="all")  # lists and dictionaries, not OmegaConf's
    except (InstantiationException, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}: {' '.join(str(error.__cause__ or error).split())}") from error
    if not isinstance(made, kind):
        what = f"{kind.__module__.partition('.')[0]} {kind.__name__}"
        raise ConfigError(f"{key}: {target['_target_']} returned a {type(made).__name__}, not a {what}.")
    return made


def describe_performance(config: TrainConfig, optimizer: torch.optim.Optimizer, device: torch.device) -> str:
    """A log line: ``precision=32-true, memory_format=channels_last, fused SGD, not compiled, …``.

    Call it after ``make_trainer``, which sets what it says about CUDA.
    """
    trainer = config.trainer
    fused = all(group.get("fused") for group in optimizer.param_groups)
    words = [
        f"precision={trainer.precision}",
        f"memory_format={'channels_last' if trainer.channels_last else 'contiguous'}",
        f"{'fused ' if fused else ''}{type(optimizer).__name__}",
        f"compiled ({trainer.compile_mode})" if trainer.compile else "not compiled",
    ]
    if config.ge.variant != "none" and config.ge.implementation is not None:
        words.append(f"ge.implementation={config.ge.implementation}")
    if device.type == "cuda":
        tf32 = torch.get_float32_matmul_precision() != "highest"
        words.append(f"TF32 {'on' if tf32 else 'off'}")
        words.append(f"cudnn.benchmark {'on' if torch.backends.cudnn.benchmark else 'off'}")
    if trainer.deterministic:
        words.append("deterministic")
    if trainer.accumulate > 1:
        words.append(f"{trainer.accumulate} batches per step")
    return ", ".join(words)


def _profiler(name: str | None, folder: Path) -> Profiler | None:
    if name is None:
        return None
    log.info("profile: %s", folder / "fit-profile.txt")
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return kinds[name](dirpath=folder, filename="profile")


@contextmanager
def translate_lightning_errors() -> Iterator[None]:
    """Raise ConfigError for Lightning's errors: no GPU, an invalid batch limit, a callback without its logger."""
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(f"Lightning rejects this configuration: {' '.join(str(error).split())}") from error


@contextmanager
def translate_ddp_errors() -> Iterator[None]:
    """Raise TrainingError if another rank has died; leave the process group at the end, however it comes."""
    together = False
    try:
        yield
        together = True
    except Stopped:
        together = True
        raise
    except RuntimeError as error:
        gloo = "gloo/transport" in str(error)  # gloo raises plain RuntimeErrors
        if not gloo and not isinstance(error, dist.DistError):
            raise
        raise TrainingError(
            "another rank of this run has failed or was killed; see its last output for the reason. "
            "The same command resumes from the last checkpoint."
        ) from error
    finally:
        leave_process_group(together=together)
