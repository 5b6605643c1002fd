"""The files of a run: ``result.json``, written at its end, ``history.jsonl`` with a row per epoch, and checkpoints."""

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
    """Write JSON atomically. NaN and infinity raise ValueError."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # names of files need not be UTF-8


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one line of JSON; a preceding line truncated by a crash is ended first."""
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())  # the checkpoint that follows relies on it


def keep_epochs(run: Path, epochs: int) -> None:
    """Truncate the history to the first ``epochs``, with one row each."""
    rows = [row for row in read_history(run) if row["epoch"] <= epochs]
    with atomic_write(run / HISTORY) as file:
        file.writelines(map(_line, rows))


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(finite(row)).encode() + b"\n"


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row with NaN and infinity, which JSON lacks, replaced by None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def read_history(run: Path) -> list[dict[str, Any]]:
    """The rows by epoch; the last row of a repeated epoch. Lines truncated by a crash are skipped."""
    rows: dict[int, dict[str, Any]] = {}
    path = run / HISTORY
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            rows[int(row["epoch"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [rows[epoch] for epoch in sorted(rows)]
