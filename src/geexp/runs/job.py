"""A training job: configuration, identity and folder, and the initial weights of a detector."""

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
        if different:
            named = ", ".join(f"{key}={ours} (in the folder: {theirs})" for key, (ours, theirs) in different.items())
            raise ConfigError(
                f"{self.folder} holds a run with another configuration: {named}. "
                "Choose another folder, or start over in this one with force=true."
            )


def make_job(config: TrainConfig, folder: Path | None = None) -> Job:
    """The job for a checked configuration; the folder defaults to the one named after its identity."""
    known = identity(config, weights=digest_of_weights(config.backbone_checkpoint))
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


def require_backbone(config: TrainConfig) -> None:
    """Raise ConfigError if the initial weights of a detector are missing or ambiguous."""
    if config.detects and config.backbone_checkpoint is not None:
        backbone_file(config)


def backbone_file(config: TrainConfig) -> Path:
    """The file of ``backbone_checkpoint``, which may be a pattern (``*``) that matches a single file.

    Raises:
        ConfigError: if no file, or more than one, matches.
    """
    given = str(config.backbone_checkpoint)
    files = _files(given)
    if len(files) == 1:
        return files[0]
    if files:
        named = ", ".join(map(str, files))
        raise ConfigError(f"backbone_checkpoint={given}: matches {len(files)} files, {named}. Choose one of them.")
    ge = f" ge={config.ge.variant}" + (f" ge.extent={config.ge.extent}" if config.ge.variant != "none" else "")
    raise ConfigError(
        f"backbone_checkpoint={given}: No such file. Set it to a classification run's checkpoint, "
        "<run>/checkpoints/last.ckpt, or to a weights file of torchvision or timm (.pth, .safetensors). Train such a "
        f"run with: python -m geexp.train model={config.model.name}{ge} data=imagenet schedule=plateau"
    )


def digest_of_weights(given: str | None) -> str:
    """The first digits of the file's SHA-256; ``nothing`` for None, ``missing`` if the file does not exist yet."""
    if given is None:
        return "nothing"
    files = _files(given)
    if len(files) != 1:
        return "missing"
    status = files[0].stat()
    return _digest(files[0], status.st_mtime_ns, status.st_size)


def _files(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if "*" not in given:
        return [path] if path.is_file() else []
    root = Path(path.anchor)
    return sorted(root.glob(str(path.relative_to(root))))


@lru_cache
def _digest(path: Path, changed: int, size: int) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"backbone_checkpoint={path}: {error.strerror}.") from error
