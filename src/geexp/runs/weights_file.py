"""The file of weights that a detector's backbone starts from."""

import hashlib
from functools import lru_cache
from pathlib import Path

from geexp.config.errors import ConfigError
from geexp.config.schema import TrainConfig


def require_backbone(config: TrainConfig) -> None:
    """Raise ``ConfigError`` if the weights that a detector starts from are not there, or could be several."""
    if config.detects and config.backbone_checkpoint is not None:
        backbone_file(config)


def backbone_file(config: TrainConfig) -> Path:
    """The file of ``backbone_checkpoint``, which may be a pattern (``*``) that fits one file only.

    Raises:
        ConfigError: if there is none, or more than one.
    """
    given = str(config.backbone_checkpoint)
    files = _files(given)
    if len(files) == 1:
        return files[0]
    if files:
        named = ", ".join(map(str, files))
        raise ConfigError(f"backbone_checkpoint={given}: fits {len(files)} files, {named}. Name one of them.")
    ge = f" ge={config.ge.variant}" + (f" ge.extent={config.ge.extent}" if config.ge.variant != "none" else "")
    raise ConfigError(
        f"backbone_checkpoint={given}: No such file. It is a classification run's checkpoint, "
        "<run>/checkpoints/last.ckpt, or a file of weights of torchvision or timm (.pth, .safetensors). Such a run is "
        f"trained by python -m geexp.train model={config.model.name}{ge} data=imagenet schedule=plateau"
    )


def digest_of_weights(given: str | None) -> str:
    """The start of the SHA-256 of a file of weights, wherever it lies; ``nothing`` for None, and ``missing`` for a file
    that is not there: a plan can be made before it is."""
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
