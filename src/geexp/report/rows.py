"""The cells of the paper's tables, each tied to the training that fills it: by what is trained, not by a name."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from geexp.config.compose import composed_training
from geexp.config.schema import TrainConfig
from geexp.report.numbers import network_of, paper, table_rows
from geexp.runs.identity import flat
from geexp.runs.job import make_job

TABLES = (1, 2, 3, 4, 5, 6)
DETECTION = "detection"  # the experiment on COCO, whose two numbers stand in no table
FIGURES = (2, 4, 6)  # those that are drawn from errors

# What the presets choose beyond the network (DEFINITIONS: which table is trained how).
_IMAGENET = ("data=imagenet", "schedule=plateau", "optim=paper")
_SHUFFLENET = ("data=imagenet", "schedule=shufflenet400", "optim=paper")
_FIXED = ("data=imagenet", "schedule=fixed100", "optim=paper")
_PREACT = ("schedule=preact_cifar", "optim=cifar")
_WRN = ("schedule=wrn_cifar", "optim=wrn")
_COCO = ("model=resnet50", "ge=none", "data=coco2014", "detector=c4", "schedule=coco_faster_rcnn", "optim=coco")

# How a batch was cut among devices, and in which precision it was computed, leaves the protocol what it is.
OF_THE_HARDWARE = frozenset({"optim.batchnorm_batch", "optim.accumulate", "trainer.precision"})
# A detector's backbone is told by the run that it is of (``Training.backbone``), not by its file's content.
_NOT_COMPARED = OF_THE_HARDWARE | {"detector.backbone"}


@dataclass(frozen=True)
class Training:
    """What the paper trained for a row or a curve.

    ``preset`` is the experiment of ``conf/experiment`` that trains it, ``backbone`` what a detector starts from.
    """

    preset: str
    model: str
    ge: dict[str, Any]
    protocol: tuple[str, ...]
    backbone: "Training | None" = None

    @cached_property
    def config(self) -> TrainConfig:
        ge = replace(composed_training(f"ge={self.ge['variant']}").ge, **self.ge)
        return replace(composed_training(*self.protocol), model=composed_training(f"model={self.model}").model, ge=ge)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Dotted keys, without the seed: what a run must have been to fill the row."""
        leaves = flat(make_job(self.config).identity)
        del leaves["seed"]
        return leaves

    @cached_property
    def network(self) -> tuple[tuple[str, Any], ...]:
        return network_key(self.identity)


@dataclass(frozen=True)
class Cell:
    """A number that the paper prints, in percent: ``top1`` or ``top5`` error, or a detector's ``map``."""

    column: str
    metric: str
    printed: float
    training: Training


@dataclass(frozen=True)
class Row:
    """A row of a table: its label, its cells, and the complexity that is printed beside them, if any."""

    label: str
    cells: tuple[Cell, ...]
    complexity: dict[str, float]


def network_key(leaves: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The part of an identity with dotted keys that is the network."""
    return tuple(
        sorted((k, str(v)) for k, v in leaves.items() if k.startswith(("model.", "ge.")) or k == "detector.layout")
    )


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys, beyond those of the hardware, in which two identities differ, with both values."""
    keys = (ours.keys() | theirs.keys()) - _NOT_COMPARED
    return {key: (ours.get(key), theirs.get(key)) for key in sorted(keys) if ours.get(key) != theirs.get(key)}


@cache
def rows_of(table: int | str) -> tuple[Row, ...]:
    """The rows of a table, or of ``DETECTION``, in the paper's order."""
    if table == DETECTION:
        return tuple(_detection())
    return tuple(_table5() if table == 5 else _imagenet(int(table)))


def _imagenet(table: int) -> Iterator[Row]:
    for row in table_rows(table):
        network = network_of(row)
        model = network.pop("name")
        ge = {"variant": network.pop("ge"), **network}
        protocol = _SHUFFLENET if table == 4 else _IMAGENET
        training = Training(f"table{table}_{_preset(table, row)}", model, ge, protocol)
        cells = tuple(Cell(metric, metric, row[metric], training) for metric in ("top1", "top5"))
        yield Row(row["label"], cells, {key: row[key] for key in ("gflops", "mflops", "params_m") if key in row})


def _preset(table: int, row: dict[str, Any]) -> str:
    if row["ge"] == "none":
        return row["model"] if row.get("role") == "reference" else "baseline"
    if table == 1:
        return "all" if len(row["stages"]) == 4 else f"stage{row['stages'][0]}"
    extent = row.get("extent") or "global"
    if table == 6:
        return f"{extent if extent == 'global' else f'e{extent}'}_{row['pool']}"
    return row["ge"] if extent == "global" else f"{row['ge']}_e{extent}"


def _table5() -> Iterator[Row]:
    for row in table_rows(5):
        cells = []
        for model in paper()["table5"]["columns"]:
            for data, error in row[model].items():
                variant = "baseline" if row["ge"] == "none" else row["ge"]
                protocol = (f"data={data}", *(_WRN if model == "wrn16_8" else _PREACT))
                training = Training(f"table5_{model}_{data}_{variant}", model, {"variant": row["ge"]}, protocol)
                cells.append(Cell(f"{model} {data}", "top1", error, training))
        yield Row(row["label"], tuple(cells), {})


def _detection() -> Iterator[Row]:
    for row in paper()[DETECTION]["rows"]:
        extent = row["extent"] or "global"
        ge = {"variant": row["ge"], "extent": extent}
        name = "baseline" if row["ge"] == "none" else f"{row['ge']}_e{extent}"
        training = Training(f"coco_{name}", row["model"], ge, _COCO, backbone=curves_of(2)[name])
        yield Row(row["label"], (Cell("map", "map", row["map"], training),), {})


@cache
def curves_of(figure: int) -> dict[str, Training]:
    """The trainings of Figure 2, 4 or 6 by the names of their presets."""
    if figure == 2:
        found = {"baseline": Training("figure2_baseline", "resnet50", {"variant": "none"}, _IMAGENET)}
        for variant in ("theta_minus", "theta"):
            for extent in (2, 4, 8, "global"):
                name = f"{variant}_{'global' if extent == 'global' else f'e{extent}'}"
                ge = {"variant": variant, "extent": extent}
                found[name] = Training(f"figure2_{name}", "resnet50", ge, _IMAGENET)
        return found
    model = {4: "resnet50", 6: "shufflenet_g3"}[figure]
    return {
        name: Training(f"figure{figure}_{name}", model, {"variant": variant}, _FIXED)
        for name, variant in (("baseline", "none"), ("theta", "theta"))
    }


@cache
def trainings() -> tuple[Training, ...]:
    """All that the paper trained for tables and curves, one that stands in several places as often."""
    of_cells = (cell.training for table in (*TABLES, DETECTION) for row in rows_of(table) for cell in row.cells)
    of_curves = (training for figure in FIGURES for training in curves_of(figure).values())
    return (*of_cells, *of_curves)
