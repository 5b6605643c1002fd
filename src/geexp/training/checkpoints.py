"""Checkpoints: written atomically, loadable with ``weights_only=True``, and sufficient to rebuild the network."""

import errno
import logging
import shutil
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from geexp.config.compose import validated
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import TrainConfig
from geexp.runs.atomic_write import atomic_write
from geexp.runs.run import CheckpointInfo, Run
from geexp.runs.run_files import LAST, PREVIOUS

INFO = "geexp"  # the key of CheckpointInfo
log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and keeps the predecessor of ``last.ckpt`` as ``previous.ckpt``.

    Lightning's class writes to the temporary folder first, which is not atomic across file systems.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            DataError: if the file cannot be written; the earlier checkpoint remains.
        """
        path = Path(path)
        previous = path.with_name(PREVIOUS) if path.name == LAST else None
        try:
            with atomic_write(path, previous=previous) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch wraps system errors in RuntimeError
            system = error if isinstance(error, OSError) else error.__context__
            reason = str(system.strerror) if isinstance(system, OSError) else str(error).splitlines()[0]
            remedy = "Make the folder writable"
            if getattr(system, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
                remedy = "Make room"
                sizes = [file.stat().st_size for file in path.parent.glob("*.ckpt")]
                needed = f", and a checkpoint takes {max(sizes) / 2**20:,.1f}" if sizes else ""
                reason += f" ({shutil.disk_usage(path.parent).free / 2**20:,.1f} MiB are free there{needed})"
            raise DataError(
                f"{path} cannot be written: {reason}. The earlier checkpoint is intact. {remedy}, then start the same "
                "command again: it resumes from the last checkpoint."
            ) from error


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run; tensors are on the CPU."""

    path: Path
    info: CheckpointInfo
    content: dict[str, Any] = field(repr=False)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict of the run's module; the network's names begin with ``model.``."""
        return self.content["state_dict"]

    @cached_property
    def config(self) -> TrainConfig:
        """The run's configuration.

        Raises:
            DataError: if it is not valid in this version.
        """
        try:
            return validated(TrainConfig, self.info.config)
        except ConfigError as error:
            raise DataError(
                f"checkpoint {self.path}: its configuration is not valid in this version of geexp. {error}"
            ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        DataError: for a file that is missing, damaged (even by a single bit), unsafe to load, or not from a geexp run.
    """
    if not path.is_file():
        raise DataError(f"checkpoint {path}: there is no such file.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums but does not verify them
            broken = archive.testzip()
            marked = [entry.filename for entry in archive.infolist() if entry.external_attr]
        if broken is not None:
            raise zipfile.BadZipFile(f"checksum of {broken}")
        if marked:  # if an entry is marked as a folder, torch silently leaves the tensor uninitialised
            raise zipfile.BadZipFile(f"attributes of {marked[0]}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost anything in torch and zipfile
        raise DataError(f"checkpoint {path}: cannot be read ({type(error).__name__}); it may be damaged.") from error
    info = CheckpointInfo.of_dict(content.get(INFO)) if isinstance(content, dict) else None
    if info is None:
        raise DataError(f"checkpoint {path}: not written by a run of this version of geexp, so its network is unknown.")
    return Checkpoint(path, info, content)


def newest_checkpoint(run: Path) -> str:
    """A sentence that names the newest readable checkpoint of a run."""
    try:
        checkpoint = load_checkpoint(Run(run).checkpoint(LAST))
    except DataError:
        return "It has no checkpoint."
    return f"The last good checkpoint is {checkpoint.path}, of step {checkpoint.content['global_step']}."


def checkpoint_to_resume(run: Path) -> Checkpoint | None:
    """The newest readable checkpoint of a run; None if it has none. Logs a warning for a damaged ``last.ckpt``.

    Raises:
        DataError: if there are checkpoints but none is readable.
    """
    damage: list[str] = []
    for path in map(Run(run).checkpoint, (LAST, PREVIOUS)):
        if not path.exists():
            continue
        try:
            checkpoint = load_checkpoint(path)
        except DataError as error:
            damage.append(str(error))
            continue
        if damage:
            log.warning("%s Resuming from the one before it: %s", damage[0], path)
        return checkpoint
    if damage:
        raise DataError(f"{' '.join(damage)} No checkpoint is readable; start the run over with force=true.")
    return None
