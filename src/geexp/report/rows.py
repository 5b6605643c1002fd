"""The paper's rows and curves: printed numbers (``paper.yaml``), and the presets that train them (``conf/experiment``).

The sweep of a table or figure lists its presets in the order of the rows, for Table 5 row by row. A run is matched to a
row by its identity, not by its name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from geexp.config.compose import composed_training
from geexp.config.schema import GatherExciteConfig, ModelConfig, TrainConfig
from geexp.registry import options
from geexp.runs.identity import flat, identity, run_folder

TABLES = (1, 2, 3, 4, 5, 6)
DETECTION = "detection"  # the experiment on COCO, which is in no table of the paper
FIGURES = (2, 4, 6)  # those that plot errors
SWEEPS = (*(f"table{number}" for number in TABLES), "coco", *(f"figure{number}" for number in FIGURES))

# The division of a batch among devices and the precision do not change the protocol.
OF_THE_HARDWARE = frozenset({"optim.batchnorm_batch", "optim.accumulate", "trainer.precision"})
# A detector's backbone is compared by the run that trained it (``Training.backbone``), not by its file's content.
_NOT_COMPARED = OF_THE_HARDWARE | {"detector.backbone"}
_NETWORK_GROUPS = ("model", "ge", "extent", "placement")


@dataclass(frozen=True)
class Training:
    """The training of a row or a curve: a preset of ``conf/experiment`` and its configuration."""

    preset: str
    config: TrainConfig = field(repr=False, compare=False)

    @property
    def model(self) -> str:
        return self.config.model.name

    @property
    def variant(self) -> str:
        return self.config.ge.variant

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The identity that a run needs to fill the row: dotted keys, without the seed."""
        leaves = flat(identity(self.config))
        del leaves["seed"]
        return leaves

    @cached_property
    def network(self) -> tuple[tuple[str, Any], ...]:
        return network_key(self.identity)

    @cached_property
    def backbone(self) -> "Training | None":
        """The training of Figure 2 that a detector starts from."""
        if self.config.backbone_checkpoint is None:
            return None
        folder = str(Path(self.config.backbone_checkpoint).parents[1])
        return next(one for one in curves_of(2).values() if fnmatch(one.folder, folder))

    @property
    def folder(self) -> str:
        """The folder in which ``geexp.train`` puts its run."""
        return f"{self.config.outputs}/{run_folder(self.config, identity(self.config))}"

    @property
    def command(self) -> str:
        """The command that trains it."""
        root = {"imagenet": "/data/imagenet", "coco2014": "/data/coco"}.get(self.config.data.name, "/data")
        return f"python -m geexp.train experiment={self.preset} data.root={root} trainer=gpu"


@dataclass(frozen=True)
class Cell:
    """A number that the paper prints, in percent: ``top1`` or ``top5`` error, or a detector's ``map``."""

    column: str
    metric: str
    printed: float
    training: Training


@dataclass(frozen=True)
class Row:
    """A row of a table: its label, its cells, and the printed complexity, if any."""

    label: str
    cells: tuple[Cell, ...]
    complexity: dict[str, float]

    @property
    def training(self) -> Training:
        """The training of the first cell, which all cells share except in Table 5."""
        return self.cells[0].training


@cache
def paper() -> dict[str, Any]:
    """All printed numbers: ``table1`` … ``table6``, ``detection``, ``figures``. Treat it as read-only."""
    return yaml.safe_load(files("geexp.report").joinpath("paper.yaml").read_text(encoding="utf-8"))


@cache
def rows_of(table: int | str) -> tuple[Row, ...]:
    """The rows of a table, or of ``DETECTION``, in the paper's order."""
    found = iter(trainings_of("coco" if table == DETECTION else f"table{table}"))
    if table == DETECTION:
        return tuple(
            Row(row["label"], (Cell("map", "map", row["map"], next(found)),), {}) for row in paper()[DETECTION]["rows"]
        )
    printed = paper()[f"table{table}"]
    return tuple(_row(row, printed.get("columns"), found) for row in printed["rows"])


def _row(row: dict[str, Any], models: list[str] | None, found: Iterator[Training]) -> Row:
    if models is not None:
        errors = ((model, data, error) for model in models for data, error in row[model].items())
        return Row(row["label"], tuple(Cell(f"{m} {data}", "top1", e, next(found)) for m, data, e in errors), {})
    training = next(found)
    cells = tuple(Cell(metric, metric, row[metric], training) for metric in ("top1", "top5"))
    return Row(row["label"], cells, {key: row[key] for key in ("gflops", "mflops", "params_m") if key in row})


@cache
def curves_of(figure: int) -> dict[str, Training]:
    """The trainings of Figure 2, 4 or 6 by the names of their presets without the figure's."""
    return {one.preset.removeprefix(f"figure{figure}_"): one for one in trainings_of(f"figure{figure}")}


@cache
def trainings() -> tuple[Training, ...]:
    """The paper's trainings for all tables and curves; one that several places share has a preset in each."""
    return tuple(dict.fromkeys(training for sweep in SWEEPS for training in trainings_of(sweep)))


def presets_of(training: Training) -> list[str]:
    """The presets of all tables and figures that share this training."""
    return [other.preset for other in trainings() if other.identity == training.identity]


@cache
def trainings_of(sweep: str) -> tuple[Training, ...]:
    """The trainings of one of ``SWEEPS``, in its order."""
    names = options("sweep")[sweep]["hydra"]["sweeper"]["params"]["experiment"].split(",")
    return tuple(Training(name.strip(), preset_config(name.strip())) for name in names)


def preset_config(name: str) -> TrainConfig:
    """The configuration of ``experiment=<name>``, as ``composed_training`` gives it.

    A composition takes 0.1 s, and there are 72 presets. So each protocol is composed once, and the network's groups,
    whose files have no defaults lists of their own, are merged into it.
    """
    preset = options("experiment")[name]
    if preset.keys() - {"defaults", "ge"}:
        return composed_training(f"experiment={name}")
    chosen = {"extent": "global", "placement": "all"}  # train.yaml's
    for entry in preset["defaults"]:
        chosen |= {group.removeprefix("override /"): option for group, option in entry.items()}
    ge = {key: value for group in ("ge", "extent", "placement") for key, value in options(group)[chosen[group]].items()}
    protocol = [f"{group}={option}" for group, option in chosen.items() if group not in _NETWORK_GROUPS]
    return replace(
        composed_training("model=resnet50", "ge=none", *protocol),
        model=ModelConfig(**options("model")[chosen["model"]]),
        ge=GatherExciteConfig(**ge | preset.get("ge", {})),
    )


def network_key(leaves: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The part of an identity that describes the network."""
    return tuple(
        sorted((k, str(v)) for k, v in leaves.items() if k.startswith(("model.", "ge.")) or k == "detector.layout")
    )


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys, except those of the hardware, in which two identities differ, with both values."""
    keys = (ours.keys() | theirs.keys()) - _NOT_COMPARED
    return {key: (ours.get(key), theirs.get(key)) for key in sorted(keys) if ours.get(key) != theirs.get(key)}
