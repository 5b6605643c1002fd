"""What was truly trained: every network with its seeds, its hardware and the command, as Markdown."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from geexp.config.labels import ge_label, model_label
from geexp.report.measured import Measured, one_per_seed
from geexp.report.runs import Run
from geexp.runs.atomic_write import atomic_write


def trained(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per training, its seeds together: figures of the last epoch as mean ± std (n), of the sample."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(run.identity, sort_keys=True, default=str)].append(run)
    return pd.DataFrame([_row(one_per_seed(group)) for group in groups.values()]).fillna("")


def write_trained(runs: Sequence[Run], path: Path) -> None:
    """The table as Markdown."""
    table = trained(runs)
    with atomic_write(path) as file:
        file.write((table.to_markdown(index=False, disable_numparse=True) + "\n").encode())


def _row(runs: list[Run]) -> dict[str, Any]:
    first = runs[0]
    identity, result = first.identity, first.result
    ge = {key.removeprefix("ge."): value for key, value in identity.items() if key.startswith("ge.")}
    data = f"{identity['data.name']}, {identity.get('scale')}" if identity.get("scale") else identity["data.name"]
    figures = {"map": "mAP, %"} if first.detector else {"top1": "top-1 error, %", "top5": "top-5 error, %"}
    detector = f", {identity['detector.layout']} detector" if first.detector else ""
    return {
        "network": f"{model_label(identity['model.name'])} {ge_label(ge)}{detector}",
        "data": data,
        "schedule": f"{identity['schedule.name']}, {result['epochs']} epochs",
        "seeds": ", ".join(str(run.seed) for run in runs),
        **{heading: str(Measured(tuple(runs), metric)) for metric, heading in figures.items()},
        "parameters": f"{result['complexity']['params']:,}",
        "MACs": "" if first.detector else f"{result['complexity']['macs']:,}",
        "seconds a run": f"{mean(run.result['seconds'] for run in runs):.0f}",
        "hardware": ", ".join(sorted({_hardware(run.result) for run in runs})),
        "commit": ", ".join(sorted({str(run.result.get("commit"))[:10] for run in runs})),
        "command": f"`{result.get('command', '')}`",
    }


def _hardware(result: dict[str, Any]) -> str:
    devices = result.get("devices", {}).get("count", 1)
    if result.get("gpu"):
        return f"{devices} × {result['gpu']}"
    return f"{result.get('processor')}, {result.get('threads')} threads"
