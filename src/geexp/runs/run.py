"""A run as stored in its folder: result, history and checkpoints."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from geexp.config.errors import DataError
from geexp.runs.identity import flat
from geexp.runs.lock import is_locked
from geexp.runs.metrics import Score, score_of
from geexp.runs.run_files import LAST, PREVIOUS, RESULT, checkpoint_folder, read_history, write_json
from geexp.runs.status import STATUS, Status, read_status

FORMAT = 1  # of result.json


@dataclass(frozen=True)
class Result:
    """The content of ``result.json``, written once, when the run is complete.

    ``metrics`` holds the metrics of the ``last`` and the ``best`` epoch; ``complexity`` holds ``params`` and ``macs``
    (None for a detector, where they depend on the images); ``environment`` holds versions, commit and hardware.
    """

    identity: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    epochs: int
    seconds: float
    complexity: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    command: str = ""
    scale: str | None = None
    feed: dict[str, Any] = field(default_factory=dict)
    devices: dict[str, Any] = field(default_factory=dict)
    peak_memory_bytes: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] | None = None
    environment: dict[str, Any] = field(default_factory=dict, repr=False)

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        environment = content.pop("environment")
        if self.backbone is None:
            del content["backbone"]
        return {"format": FORMAT, "status": "completed", **content, **environment}

    def write(self, folder: Path) -> None:
        write_json(folder / RESULT, self.as_json())

    @classmethod
    def of_json(cls, content: Any) -> "Result":
        """
        Raises:
            ValueError: with the reason, if this is not a complete result of this version.
        """
        if not isinstance(content, dict) or content.get("status") != "completed":
            raise ValueError("is not the result of a completed run")
        if content.get("format") != FORMAT:
            raise ValueError(f"has format {content.get('format')}, and this version reads {FORMAT}")
        known = {item.name for item in fields(cls)} - {"environment"}
        try:
            rest = {key: value for key, value in content.items() if key not in {*known, "format", "status"}}
            result = cls(**{key: content[key] for key in known if key in content}, environment=rest)
            for which in ("last", "best"):
                float(result.metrics[which][result.score.key])
            _ = int(result.identity["seed"]), result.leaves["model.name"], result.leaves["ge.variant"]
            _ = result.complexity["params"], result.complexity["macs"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"lacks a field of a result: {error}") from error
        return result

    @property
    def seed(self) -> int:
        return int(self.identity["seed"])

    @cached_property
    def leaves(self) -> dict[str, Any]:
        """The identity with dotted keys, without the seed."""
        leaves = flat(self.identity)
        leaves.pop("seed", None)
        return leaves

    @property
    def score(self) -> Score:
        return score_of(self.metrics["last"])

    @property
    def detects(self) -> bool:
        return "detector.layout" in self.leaves

    @property
    def ge_label(self) -> str | None:
        """The variant's label from the configuration; None for a run of an earlier version."""
        return (self.config.get("ge") or {}).get("label")


@dataclass(frozen=True)
class CheckpointInfo:
    """The run of a checkpoint: configuration, W&B id, number of finished epochs, and metrics of the last one.

    Checkpoints store it as a plain dictionary, so that they load with ``weights_only=True``.
    """

    config: dict[str, Any] = field(repr=False)
    run_id: str
    epoch: int
    metrics: dict[str, Any]
    format: int = 1

    @classmethod
    def of_dict(cls, content: Any) -> "CheckpointInfo | None":
        """Parse the dictionary in a checkpoint; None if it is anything else or of another version."""
        try:
            info = cls(**content)
        except TypeError:
            return None
        return info if info.format == 1 else None


class Run:
    """The folder of a run, which may still be training. Files are read on each access."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({self.folder})"

    @cached_property
    def result(self) -> Result | None:
        """The result; None if the run is not complete or ``result.json`` is damaged."""
        try:
            return self.read_result()
        except DataError:
            return None

    def read_result(self) -> Result:
        """
        Raises:
            DataError: with the reason, if there is no complete result of this version.
        """
        try:
            return Result.of_json(json.loads((self.folder / RESULT).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            status = self.status
            state = "not finished" if status is None else status.state.replace("running", "still running")
            reason = f": {status.reason}" if status is not None and status.reason else ""
            raise DataError(f"{state}{reason}") from error
        except OSError as error:
            raise DataError(f"{RESULT} cannot be read: {error.strerror}") from error
        except json.JSONDecodeError as error:
            reason = "is truncated or damaged; training again with the same command replaces it"
            raise DataError(f"{RESULT} {reason}") from error
        except ValueError as error:
            raise DataError(f"{RESULT} {error}") from error

    @property
    def status(self) -> Status | None:
        return read_status(self.folder)

    def history(self) -> list[dict[str, Any]]:
        """One row per epoch: ``epoch``, ``step``, ``seconds``, ``time`` and the metrics."""
        return read_history(self.folder)

    @property
    def locked(self) -> bool:
        """Whether a process is training the run."""
        return is_locked(self.folder)

    def checkpoint(self, name: str) -> Path:
        """The path of ``best.ckpt``, ``last.ckpt`` or ``previous.ckpt``; the file may be missing."""
        return checkpoint_folder(self.folder) / name

    @property
    def resumable(self) -> bool:
        return any(self.checkpoint(name).is_file() for name in (LAST, PREVIOUS))


def find_runs(folder: Path) -> Iterator[Run]:
    """All runs at or below a folder, finished or not, sorted by path.

    The folder of a run contains ``result.json``, ``status.json`` or checkpoints. Hidden folders and ``published``, with
    the repository's published runs, are searched only if ``folder`` is inside them.
    """
    for place, below, files in os.walk(folder):
        run = Run(Path(place))
        below[:] = sorted(name for name in below if name != "published" and not name.startswith("."))
        if RESULT in files or STATUS in files or run.resumable:
            below.clear()  # skip checkpoints and loggers' files
            yield run
