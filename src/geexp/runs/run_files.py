"""The files of a run: ``result.json``, written once at its end, ``history.jsonl``, a row per epoch, and checkpoints."""

import json
import math
import os
from pathlib import Path
from typing import Any

from geexp.runs.atomic_write import atomic_write

RESULT = "result.json"
HISTORY = "history.jsonl"
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
PRECISION_RECALL, DETECTIONS = "precision_recall.png", "detections.png"  # a detector's pictures


def checkpoint_folder(run: Path) -> Path:
    return run / "checkpoints"


def write_json(path: Path, content: Any) -> None:
    """Write atomically: readers see the old file or the new one, whole. Refuses NaN and infinity."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one line of JSON. A line cut short by a crash before is closed first, so that this one is whole."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())  # as the checkpoint that follows it, which counts on it


def keep_epochs(run: Path, epochs: int) -> None:
    """Leave the first ``epochs`` in the history, a row each: what a run that goes on from their checkpoint has done."""
    rows = [row for row in read_history(run) if row["epoch"] <= epochs]
    with atomic_write(run / HISTORY) as file:
        file.writelines(map(_line, rows))


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(finite(row)).encode() + b"\n"


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row with None for NaN and infinity, which are no JSON."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def read_history(run: Path) -> list[dict[str, Any]]:
    """The rows by epoch; of an epoch that was begun again, the last. Lines cut short by a crash are passed over."""
    rows: dict[int, dict[str, Any]] = {}
    path = run / HISTORY
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            rows[int(row["epoch"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [rows[epoch] for epoch in sorted(rows)]


def read_result(run: Path) -> dict[str, Any] | None:
    """The result of a run, or None if it has not come to its end."""
    try:
        result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("status") == "completed" else None
