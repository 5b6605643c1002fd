"""An analysis of one run, or of two for comparison: measured, stored beside the run, drawn.

The data are tidy tables as CSV with a JSON file about their origin, so that a picture can be drawn again without the
network.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from geexp.analysis.drawing import line_styles
from geexp.config.errors import ConfigError, DataError, UserError
from geexp.config.labels import ge_label, model_label
from geexp.config.process import PlainConsole
from geexp.config.ranks import rank
from geexp.config.schema import AnalyzeConfig
from geexp.runs.atomic_write import atomic_write
from geexp.runs.environment import environment
from geexp.runs.identity import flat
from geexp.runs.job import make_job
from geexp.runs.run_files import LAST, checkpoint_folder, write_json

if TYPE_CHECKING:
    import pandas as pd

    from geexp.training.checkpoints import Checkpoint

FORMAT = 1
FOLDER = "analysis"  # in a run's folder


@dataclass(frozen=True)
class Network:
    """An analysed network. ``label`` names it in the tables' column ``network`` and in the picture.

    ``identity`` has dotted keys and no seed; ``epoch`` is that of the checkpoint.
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


@dataclass(frozen=True)
class Analysis:
    """An analysis of one network, or of two for comparison. ``tables`` are tidy; the first column is ``network``."""

    name: str
    networks: tuple[Network, ...]
    settings: dict[str, Any]
    tables: "dict[str, pd.DataFrame]"
    made: dict[str, Any]

    @property
    def styled(self) -> list[tuple[Network, dict[str, Any]]]:
        """Each network with its line style, see ``drawing.line_styles``."""
        return list(zip(self.networks, line_styles([one.variant for one in self.networks]), strict=True))

    def of(self, network: Network, table: str, **equal: Any) -> "pd.DataFrame":
        """The rows of one network, or only those with these values, as in ``block="conv4_1"``."""
        rows = self.tables[table]
        for column, value in {"network": network.label, **equal}.items():
            rows = rows[rows[column] == value]
        return rows


def analyse(settings: AnalyzeConfig) -> None:
    """Measure, or with ``redraw=true`` read earlier data; then draw, on rank 0.

    Raises:
        ConfigError, DataError: for runs that cannot be analysed, if possible before any computation.
    """
    kind = import_module(f"geexp.analysis.{settings.analysis}")
    run = Path(str(settings.run))
    folder = Path(settings.out) if settings.out else run / FOLDER
    wandb_run = wandb_run_of(run) if settings.wandb else None
    if settings.images is None:
        settings = replace(settings, images=getattr(kind, "DEFAULT_IMAGES", None))
    analysis = read_analysis(folder, settings.analysis) if settings.redraw else _measured(kind, settings)
    if rank() != 0:
        return
    files = [] if settings.redraw else write_analysis(analysis, folder)
    pictures = kind.draw(analysis, folder / settings.analysis)
    about = {
        "analysis": analysis.name,
        "networks": [{"label": one.label, "run": one.run, "images": one.images} for one in analysis.networks],
    }
    show(settings, about, analysis.tables, kind.summary(analysis), files, pictures)
    if wandb_run is not None:
        log_picture(wandb_run, f"{FOLDER}/{settings.analysis}", pictures)


def show(
    settings: AnalyzeConfig,
    about: dict[str, Any],
    tables: "dict[str, pd.DataFrame]",
    summary: Table,
    data: Sequence[Path],
    pictures: Sequence[Path],
) -> None:
    """The summary, or with ``format=json`` all tables as lists of rows, on standard output; the files on stderr."""
    if settings.format == "json":
        rows = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        print(json.dumps({**about, "tables": rows, "pictures": [str(p) for p in pictures]}))
    else:
        PlainConsole().print(summary)
    for what, files in (("data", data), ("picture", pictures)):
        for file in files:
            print(f"{what}: {file}", file=sys.stderr)


def wandb_run_of(folder: Path) -> "Checkpoint":
    """The last checkpoint in a run's folder, which names the run at W&B.

    Raises:
        ConfigError: if the run was trained with another logger.
        DataError: if it has no checkpoint.
    """
    from geexp.training.checkpoints import load_checkpoint  # only here: it imports torch

    checkpoint = load_checkpoint(checkpoint_folder(folder) / LAST)
    logger = checkpoint.config.logger
    if not logger.has("wandb"):
        used = ",".join(logger.loggers) or "none"
        raise ConfigError(
            f"wandb=true: {folder} was trained with logger={used}, so it has no run at W&B. Leave wandb out."
        )
    return checkpoint


def log_picture(run: "Checkpoint", key: str, pictures: Sequence[Path]) -> None:
    """Log the PNGs among ``pictures`` as ``key``; offline if no API key is configured."""
    import wandb

    from geexp.training.wandb_content import mode_of, translate_wandb_errors

    logger = run.config.logger
    mode: Any = mode_of(logger)
    with translate_wandb_errors():
        experiment = wandb.init(
            project=logger.project,
            entity=logger.entity,
            id=run.info.run_id,
            dir=str(run.path.parents[1]),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(init_timeout=20, console="off", silent=True),
        )
    for picture in pictures:
        if picture.suffix == ".png":
            experiment.log({key: wandb.Image(str(picture))})
    experiment.finish()
    where = f"; to upload later: wandb sync {Path(experiment.dir).parent}" if mode == "offline" else ""
    print(f"W&B ({mode}): {key} in run {run.info.run_id}{where}", file=sys.stderr)


def _measured(kind: Any, settings: AnalyzeConfig) -> Analysis:
    import pandas as pd

    from geexp.analysis.loaded_run import load_run, require_same_images

    loaded = [load_run(str(settings.run), settings)]
    if settings.against is not None:
        loaded.append(load_run(settings.against, settings, is_reference=True))
        require_same_images(*loaded)
    identities = [flat(make_job(one.config).identity) for one in loaded]
    seeds = [int(leaves.pop("seed")) for leaves in identities]
    labels = labels_of(identities, seeds, [one.config.ge.label for one in loaded])
    tables: dict[str, list[pd.DataFrame]] = {}
    networks = []
    for one, leaves, seed, label in zip(loaded, identities, seeds, labels, strict=True):
        try:
            with one.fabric.autocast():  # if the run was trained with it, as in its own evaluation
                found = kind.measure(one)
        except UserError:
            raise
        except ValueError as error:
            raise ConfigError(f"run={one.folder}: {str(error).rstrip('.')}.") from error
        for name, table in found.items():
            table.insert(0, "network", label)
            tables.setdefault(name, []).append(table)
        networks.append(
            Network(
                label,
                run=str(one.folder),
                seed=seed,
                checkpoint=str(one.checkpoint),
                epoch=one.epoch,
                split=settings.split,
                images=one.image_count,
                identity=leaves,
            )
        )
    made = {
        "at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": f"python -m geexp.analyze {shlex.join(sys.argv[1:])}",
        "environment": environment(),
    }
    return Analysis(
        settings.analysis,
        tuple(networks),
        {key: getattr(settings, key) for key in ("blocks", "stage", "ratios", "images")},
        {name: pd.concat(several, ignore_index=True) for name, several in tables.items()},
        made,
    )


def labels_of(identities: Sequence[dict[str, Any]], seeds: Sequence[int], variants: Sequence[str | None]) -> list[str]:
    """A distinct label per network: its variant, with its backbone or its seed where needed.

    ``variants`` are the labels in the runs' own configurations, for a user's variants; None for the usual one.
    """
    ge = [
        ge_label({key[3:]: value for key, value in one.items() if key.startswith("ge.")}, label)
        for one, label in zip(identities, variants, strict=True)
    ]
    models = [model_label(one["model.name"]) for one in identities]
    labels = ge if len(set(models)) == 1 else [f"{model} {variant}" for model, variant in zip(models, ge, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [f"{label}, seed {seed}" for label, seed in zip(labels, seeds, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({n})" for n, label in enumerate(labels, 1)]
    return labels


def write_table(path: Path, table: "pd.DataFrame") -> None:
    with atomic_write(path) as file:
        file.write(table.to_csv(index=False).encode(errors="backslashreplace"))


def write_analysis(analysis: Analysis, folder: Path) -> list[Path]:
    """Write ``<name>_<table>.csv``, and ``<name>.json`` last, so that it implies the tables. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: _table_file(folder, analysis.name, name) for name in analysis.tables}
    for name, table in analysis.tables.items():
        write_table(files[name], table)
    content = asdict(replace(analysis, tables={})) | {"format": FORMAT, "tables": list(files)}
    write_json(folder / f"{analysis.name}.json", content)
    return [*files.values(), folder / f"{analysis.name}.json"]


def read_analysis(folder: Path, name: str) -> Analysis:
    """The inverse of ``write_analysis``.

    Raises:
        DataError: if it is missing or damaged.
    """
    import pandas as pd

    path = folder / f"{name}.json"
    if not path.is_file():
        raise DataError(f"{path}: there is no such file, so there are no data to draw from. Leave redraw out.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path}: has format {content['format']}, and this version reads {FORMAT}.")
        tables = {
            table: pd.read_csv(_table_file(folder, name, table), keep_default_na=False, na_values=[""])
            for table in content["tables"]
        }
        networks = tuple(Network(**network) for network in content["networks"])
        for table in tables.values():
            unknown = set(table["network"]) - {network.label for network in networks}
            if unknown:
                raise ValueError(f"the tables have unknown networks: {', '.join(map(str, sorted(unknown)))}")
        return Analysis(name, networks, content["settings"], tables, content["made"])
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: it or its tables are damaged ({error}). Leave redraw out to make them again."
        ) from error


def _table_file(folder: Path, name: str, table: str) -> Path:
    return folder / f"{name}_{table}.csv"
