"""The data of an analysis, beside its picture: tidy tables as CSV, and what they were made of as JSON.

A picture can be drawn again from them without the network.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from geexp.config.errors import DataError
from geexp.config.labels import ge_label, model_label
from geexp.report.rows import Training, differing
from geexp.runs.atomic_write import atomic_write
from geexp.runs.run_files import write_json

FORMAT = 1
FOLDER = "analysis"  # of a run


@dataclass(frozen=True)
class Network:
    """Whose data it is. ``label`` is its name in the tables' column ``network`` and in the picture.

    ``identity`` has dotted keys, and no seed; ``epoch`` is that of the checkpoint.
    """

    label: str
    run: str
    seed: int
    checkpoint: str
    epoch: int
    split: str
    images: int
    identity: dict[str, Any]

    @property
    def variant(self) -> str:
        return str(self.identity["ge.variant"])

    @property
    def model(self) -> str:
        return model_label(self.identity["model.name"])

    def is_of(self, training: Training) -> bool:
        """Whether it was trained exactly as the paper trained."""
        return not differing(self.identity, training.identity)


@dataclass(frozen=True)
class Analysis:
    """An analysis of one network or of two beside each other. ``tables`` are tidy; the first column is ``network``."""

    name: str
    networks: tuple[Network, ...]
    settings: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    made: dict[str, Any]

    def of(self, network: Network, table: str) -> pd.DataFrame:
        """The rows of one network."""
        rows = self.tables[table]
        return rows[rows["network"] == network.label]


def labels_of(identities: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[str]:
    """One name for each network: its variant, and its backbone or its seed where the variant does not tell."""
    ge = [ge_label({key[3:]: value for key, value in one.items() if key.startswith("ge.")}) for one in identities]
    models = [model_label(one["model.name"]) for one in identities]
    labels = ge if len(set(models)) == 1 else [f"{model} {variant}" for model, variant in zip(models, ge, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [f"{label}, seed {seed}" for label, seed in zip(labels, seeds, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({n})" for n, label in enumerate(labels, 1)]
    return labels


def write_analysis(analysis: Analysis, folder: Path) -> list[Path]:
    """``<name>.json`` and ``<name>_<table>.csv``, the JSON last: where it is, the tables are. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in analysis.tables.items():
        path = _table_file(folder, analysis.name, name)
        with atomic_write(path) as file:
            file.write(table.to_csv(index=False).encode())
        written.append(path)
    content = asdict(analysis) | {"format": FORMAT, "tables": list(analysis.tables)}
    write_json(folder / f"{analysis.name}.json", content)
    return [*written, folder / f"{analysis.name}.json"]


def read_analysis(folder: Path, name: str) -> Analysis:
    """What ``write_analysis`` wrote.

    Raises:
        DataError: if it is not there, or not as it was written.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise DataError(f"{path}: there is no such file, so there are no data to draw from. Leave redraw out.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path}: has format {content['format']}, and this version reads {FORMAT}.")
        tables = {table: _table(_table_file(folder, name, table)) for table in content["tables"]}
        networks = tuple(Network(**network) for network in content["networks"])
        for table in tables.values():
            strangers = set(table["network"]) - {network.label for network in networks}
            if strangers:
                raise ValueError(f"the tables speak of {', '.join(map(str, sorted(strangers)))}")
        return Analysis(name, networks, content["settings"], tables, content["made"])
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: it or its tables are damaged ({error}). Leave redraw out to make them again."
        ) from error


def _table_file(folder: Path, name: str, table: str) -> Path:
    return folder / f"{name}_{table}.csv"


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=[""])
