"""What a run is called where people look at many: by the rows of the paper that it fills, or by what it trains."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from textwrap import shorten

from geexp.config.labels import ge_label, model_label
from geexp.config.schema import ModelConfig, TrainConfig
from geexp.report.rows import DETECTION, FIGURES, TABLES, Training, curves_of, differing, rows_of
from geexp.runs.identity import data_slug, effective_ge, flat, identity

COCO = "coco"  # the sweep of the detection experiment, and the tag of its runs

# Choices that change what is trained and show in nothing else of a name.
_TELLING_CHOICES = ("optim", "debug", "data/augmentation", "callbacks")


def network_label(config: TrainConfig) -> str:
    """``ResNet-50 GE-θ``."""
    return f"{model_label(config.model.name)} {ge_label(effective_ge(config.ge, config.model))}"


def run_label(config: TrainConfig, typed: Sequence[str] = ()) -> str:
    """``Table 2: GE-θ`` or ``COCO: GE-θ (E8)`` for a run of the paper; else its network, data, schedule, and what of
    the words ``typed`` made it another, as in ``ResNet-50 GE-θ, imagenet, plateau, optim.lr=0.2``.

    A run that is in several tables goes by the row of the table that it is trained for, or of the first.
    """
    shown = rows_filled(config)
    if not shown:
        return ", ".join([network_label(config), data_slug(config), config.schedule.name, *_telling(config, typed)])
    where = config.logger.group if config.logger.group in shown else next(iter(shown))
    name = "COCO" if where == COCO else f"{where[:-1].capitalize()} {where[-1]}"
    return f"{name}: {shown[where]}"


def run_name(config: TrainConfig, typed: Sequence[str] = ()) -> str:
    """The label, cut if it is longer than W&B takes, and the seed."""
    return f"{shorten(run_label(config, typed), 100, placeholder=' …')}, seed {config.seed}"


def run_tags(config: TrainConfig) -> list[str]:
    """The paper's tables and figures that the run is in, its variant of GE and its data."""
    return [*rows_filled(config), config.ge.variant, data_slug(config)]


def rows_filled(config: TrainConfig) -> dict[str, str]:
    """The labels of the rows that the run fills, by ``table1`` … ``table6``, ``coco``, and of its curves, by
    ``figure2`` … A detector is taken for the paper's if it starts from a run of ours."""
    leaves = flat(identity(replace(config, seed=0)))
    shown: dict[str, str] = {}
    for where, label, training in _places():
        if where in shown or not _same_names(config, training):
            continue
        if not differing(leaves, training.identity | {"seed": 0}):
            shown[where] = label
    return shown


def _places() -> Iterator[tuple[str, str, Training]]:
    for table in TABLES:
        for row in rows_of(table):
            for cell in row.cells:
                model, _, data = cell.column.partition(" ")
                column = f", {model_label(model)}, {data}" if data else ""
                yield f"table{table}", row.label + column, cell.training
    for row in rows_of(DETECTION):
        yield COCO, row.label, row.cells[0].training
    for figure in FIGURES:
        for training in curves_of(figure).values():
            yield f"figure{figure}", ge_label(effective_ge(training.ge, ModelConfig(training.model))), training


def _same_names(config: TrainConfig, training: Training) -> bool:
    """Whether it is worth composing the whole training to compare it, which takes a tenth of a second."""
    names = {f"data={config.data.name}", f"schedule={config.schedule.name}"}
    return (
        training.model == config.model.name
        and (training.backbone is None or str(config.backbone_checkpoint).endswith(".ckpt"))
        and effective_ge(training.ge, config.model) == effective_ge(config.ge, config.model)
        and names <= set(training.protocol)
    )


def _telling(config: TrainConfig, typed: Sequence[str]) -> list[str]:
    leaves = flat(identity(config))
    named = ("ge.variant", "ge.extent", "ge.pool", "ge.stages", "ge.reduction", "model.name", "data.name")
    words = [word.lstrip("+") for word in typed]
    keys = [word.partition("=")[0] for word in words]
    return [
        word
        for word, key in zip(words, keys, strict=True)
        if key in _TELLING_CHOICES or ("." in key and key in leaves and key not in named)
    ]
