"""What a run has written for W&B, as its server would get it; and what a dashboard's specification asks for."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Logged:
    """One start of a run."""

    id: str = ""
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return [row for row in self.history if "epoch" in row]


def logged(run: Path) -> list[Logged]:
    """All starts of the run in this folder, in their order."""
    return [_read(path) for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb"))]


def table(run: Path, name: str) -> list[list[Any]]:
    (path,) = run.glob(f"wandb/offline-run-*/files/media/table/{name}*.table.json")
    return json.loads(path.read_text())["data"]


def _read(path: Path) -> Logged:
    start = Logged()
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            start.id, start.name, start.group = record.run.run_id, record.run.display_name, record.run.run_group
            start.tags = list(record.run.tags)
            start.config = _items(record.run.config.update)
            start.config.pop("_wandb")
        elif kind == "history":
            start.history.append(_items(record.history.item))
        elif kind == "summary":
            start.summary |= _items(record.summary.update)
        elif kind == "metric":
            start.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            start.finished = record.exit.exit_code == 0
    return start


def _items(items: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        below = tree
        for name in path:
            below = below.setdefault(name, {})
        below[last] = json.loads(item.value_json)
    return tree


def _records(path: Path) -> Iterator[Any]:
    """LevelDB's log behind a header of W&B: blocks of 32 KiB, records in one or several pieces."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (rest := -position % 32768) < 7 and rest:
            position += rest
            continue
        length, kind = struct.unpack_from("<4xHB", data, position)
        whole = (whole if kind in (3, 4) else b"") + data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            yield record


def dashboard_grids(specification: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in specification["spec"]["blocks"] if block["type"] == "panel-grid"]


def dashboard_metrics(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(section, key) of everything that the panels and tables of a specification show."""
    for grid in dashboard_grids({"spec": spec}):
        (runs,) = grid["runSets"]
        for key in runs["grouping"]:
            yield key["section"], key["name"].removesuffix(".value")
        for key in runs["sort"]["keys"]:
            yield key["key"]["section"], key["key"]["name"]
        for column in runs["runFeed"]["columnOrder"]:
            section, _, name = column.partition(":")
            if section != "run":
                yield section, name.removesuffix(".value")
        for panel in grid["panelBankSectionConfig"]["panels"]:
            config = panel["config"]
            if "groupBy" in config:
                yield "config", config["groupBy"].removesuffix(".value")
            of_epochs = panel["viewType"] == "Run History Line Plot"
            for key in [config.get("xAxis"), config.get("yAxis"), *config.get("metrics", [])]:
                if key is not None:
                    yield "history" if of_epochs else "summary", key.removeprefix("summary:")
