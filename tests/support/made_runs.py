"""Run folders made by hand: what a finished run leaves behind, without its training."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from geexp.report.rows import DETECTION, Training, rows_of
from geexp.runs.identity import identity

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\"> & {{ 7 * 7 }} <b>"


def paper_identity(table: int, row: int, column: int = 0) -> dict[str, Any]:
    """What the paper trained for a cell."""
    return deepcopy(identity(rows_of(table)[row].cells[column].training.config))


def training(table: int | str, label: str) -> Training:
    """What the paper trained for a row."""
    (row,) = (row for row in rows_of(table) if row.label == label)
    return row.training


def write_run(folder: Path, what: dict[str, Any], top1: float, *, seed: int = 0, epochs: int = 5, **more: Any) -> Path:
    """A finished run of this identity; ``more`` goes into its ``result.json`` as it is."""
    errors = {"val/top1_error": top1, "val/top5_error": top1 / 4}
    time = more.pop("time", 1.7e9 + seed)
    known = what | {"seed": seed}
    result = {
        "format": 1,
        "status": "completed",
        "identity": known,
        "metrics": {"last": errors | {"epoch": epochs, "time": time}, "best": errors | {"epoch": epochs}},
        "epochs": epochs,
        "seconds": 7384.5,
        "complexity": {"params": 25_610_152, "macs": 3_857_973_248},
        "peak_memory_bytes": {"resident": 2**30, "gpu": None},
        "config": what | {"outputs": "outputs"},
        "command": "python -m geexp.train ge=theta",
        "commit": "fe39b04f5d4d376d",
        "versions": {"torch": "2.11.0"},
        "python": "3.11.7",
        "host": "vm",
        "processor": "AMD EPYC",
        "threads": 2,
        "gpu": None,
    } | more
    rows = [
        {"epoch": n, "val/top1_error": top1 + 40 / n - 40 / epochs, "train/top1_error": top1 + 45 / n - 45 / epochs}
        for n in range(1, epochs + 1)
    ]
    return _write(folder, result, rows)


def write_training(folder: Path, of: Training, *, top1: float = 22.0, but: Any = (), **more: Any) -> Path:
    """A finished run of one of the paper's trainings; ``but`` replaces dotted keys of its identity."""
    known = deepcopy(identity(of.config))
    for key, value in dict(but).items():
        group, name = key.split(".")
        known[group][name] = value
    return write_run(folder, known, top1, **more)


def write_detector(folder: Path, row: int, mean_ap: float, *, seed: int = 0, backbone: Any = "the paper's") -> Path:
    """A finished detector of one of the paper's two; ``backbone`` is the identity of the run that it started from."""
    of = rows_of(DETECTION)[row].training
    assert of.backbone is not None
    known = deepcopy(identity(of.config)) | {"seed": seed}
    known["detector"]["backbone"] = "nothing" if backbone is None else "0123456789abcdef"
    if backbone == "the paper's":
        backbone = deepcopy(identity(of.backbone.config)) | {"seed": seed}
    numbers = {"val/AP": mean_ap, "val/AP50": 2 * mean_ap, "val/AP_large": None}
    last = numbers | {"epoch": 30, "time": 1.7e9 + seed}
    result = {
        "format": 1, "status": "completed", "identity": known, "metrics": {"last": last, "best": last}, "epochs": 30,
        "seconds": 1e5, "complexity": {"params": 33_000_000, "learnable": 32_000_000, "macs": None},
        "backbone": {"loaded": "265 tensors loaded", "identity": backbone if isinstance(backbone, dict) else None},
    }  # fmt: skip
    return _write(folder, result, [numbers | {"epoch": 1, "train/loss": 1.0}])


def _write(folder: Path, result: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_some_of_each(root: Path) -> Path:
    """Two seeds of a row, one of another, another protocol, hostile strings, and folders that are no finished runs."""
    for seed, error in ((0, 22.0), (1, 22.4)):
        write_run(root / f"theta-{seed}", paper_identity(2, 4), error, seed=seed, epochs=300)
    write_run(root / "baseline", paper_identity(2, 1), 23.1, epochs=300)
    write_run(root / "cifar100", paper_identity(5, 0, 1), 26.88)
    short = paper_identity(2, 2)
    short["trainer"]["max_epochs"] = 90
    write_run(root / "short", short, 24.5)
    hostile = paper_identity(2, 3)
    hostile["scale"] = HOSTILE
    write_run(root / "hostile", hostile, 31.5, command=HOSTILE, host=HOSTILE, versions={HOSTILE: HOSTILE})
    (root / "half").mkdir()
    (root / "half" / "result.json").write_text('{"format": 1, "sta')
    (root / "<b>failed<i>").mkdir()
    status = {"state": "failed", "reason": f"no: {HOSTILE}", "host": "vm", "heartbeat": 0}
    (root / "<b>failed<i>" / "status.json").write_text(json.dumps(status))
    return root
