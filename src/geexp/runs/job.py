"""A training job: configuration, identity and folder, and the file of its initial weights."""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from geexp.config.compose import validated
from geexp.config.errors import ConfigError
from geexp.config.schema import TrainConfig
from geexp.runs.identity import differences, identity, run_folder
from geexp.runs.run_files import BEST, checkpoint_folder

_MISSING = "missing"  # instead of the digest of a file that does not exist (yet, or any more)


@dataclass(frozen=True)
class Job:
    """One training. ``identity`` is computed once, when the job is made; ``folder`` is absolute."""

    config: TrainConfig
    identity: dict[str, Any] = field(repr=False)
    folder: Path

    @property
    def slug(self) -> str:
        """The run's default folder below ``outputs``."""
        return run_folder(self.config, self.identity)

    def require_same(self, recorded: dict[str, Any]) -> None:
        """Raise ConfigError, naming the keys, if the folder holds a run with another configuration."""
        different = differences(self.identity, recorded)
        different = {key: values for key, values in different.items() if _MISSING not in values}
        if different:
            named = ", ".join(f"{key}={ours} (in the folder: {theirs})" for key, (ours, theirs) in different.items())
            raise ConfigError(
                f"{self.folder} holds a run with another configuration: {named}. "
                "Choose another folder, or start over in this one with force=true."
            )


def make_job(config: TrainConfig, folder: Path | None = None) -> Job:
    """The job for a checked configuration; the folder defaults to the one named after its identity."""
    known = identity(config, weights=digest_of_weights(config))
    return Job(config, known, (folder or Path(config.outputs) / run_folder(config, known)).absolute())


def of_the_task(composed: DictConfig) -> DictConfig:
    """The composed configuration without the keys of Hydra and of geexp.plan."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key not in ("hydra", "hardware")])


def register_resolvers() -> None:
    """Register ``${geexp.run_folder:}``, for Hydra's output folders.

    The resolver validates the configuration first, so no folder is created for an invalid one.
    """

    def resolve(*, _root_: DictConfig) -> str:
        return make_job(validated(TrainConfig, of_the_task(_root_))).slug

    OmegaConf.register_new_resolver("geexp.run_folder", resolve, replace=True)


def weights_key(config: TrainConfig) -> str:
    """The key that names the initial weights: ``backbone_checkpoint`` of a detector, ``weights`` of a classifier."""
    return "backbone_checkpoint" if config.detects else "weights"


def weights_file(config: TrainConfig) -> Path | None:
    """The file of the initial weights; None if they are random.

    The key may name a run's folder, for its ``best.ckpt``, and may be a pattern (``*``) that matches a single file.

    Raises:
        ConfigError: if no file, or more than one, matches.
    """
    key, given = weights_key(config), _given(config)
    if given is None:
        return None
    files = _files(given)
    if len(files) == 1:
        return files[0]
    if files:
        raise ConfigError(
            f"{key}={given}: matches {len(files)} files, {', '.join(map(str, files))}. Choose one of them."
        )
    message = (
        f"{key}={given}: No such file. Set it to a classification run's folder (for its best.ckpt), to a checkpoint, "
        "or to a downloaded weights file of torchvision or timm (.pth, .safetensors)."
    )
    if config.detects:
        ge = f" ge={config.ge.variant}" + (f" ge.extent={config.ge.extent}" if config.ge.variant != "none" else "")
        train = f"python -m geexp.train model={config.model.name}{ge} data=imagenet schedule=plateau"
        message += f" Train such a run with: {train}"
    raise ConfigError(message)


def digest_of_weights(config: TrainConfig) -> str:
    """The first digits of the SHA-256 of the initial weights' file; ``nothing`` for random weights, ``missing`` if the
    file does not exist yet."""
    given = _given(config)
    if given is None:
        return "nothing"
    files = _files(given)
    if len(files) != 1:
        return _MISSING
    status = files[0].stat()
    try:
        return _digest(files[0], status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ConfigError(f"{weights_key(config)}={given}: {error.strerror}.") from error


def _given(config: TrainConfig) -> str | None:
    return config.backbone_checkpoint if config.detects else config.weights


def _files(given: str) -> list[Path]:
    path = Path(given)
    root = Path(path.anchor)
    found = sorted(root.glob(str(path.relative_to(root)))) if "*" in given else [path]
    files = (checkpoint_folder(path) / BEST if path.is_dir() else path for path in found)
    return [file for file in files if file.is_file()]


@lru_cache
def _digest(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
