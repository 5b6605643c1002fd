"""One analysis of one run, or of two beside each other: measured, kept, drawn, and said where it is."""

import json
import shlex
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from rich.console import Console

from geexp.config.errors import ConfigError, UserError
from geexp.config.ranks import rank
from geexp.config.schema import AnalyzeConfig
from geexp.report.analyses import gates, pruning, receptive_field, selectivity
from geexp.report.analyses.at_wandb import show_at_wandb, wandb_run_of
from geexp.report.analyses.stored import FOLDER, Analysis, Network, labels_of, read_analysis, write_analysis
from geexp.runs.identity import flat
from geexp.runs.job import make_job

# By default the number of images, where not all: a mean that has settled by then, and a backward pass for each.
IMAGES = {"receptive_field": 256}

KINDS: dict[str, ModuleType] = {
    "selectivity": selectivity,
    "pruning": pruning,
    "receptive_field": receptive_field,
    "gates": gates,
}


def analyse(settings: AnalyzeConfig) -> Analysis | None:
    """Measure, or read what was measured before, and draw; None on the ranks that do not write.

    Raises:
        ConfigError, DataError: for what cannot be analysed, before anything is computed where that can be known.
    """
    run = Path(str(settings.run)).expanduser()
    kind, folder = KINDS[settings.analysis], Path(settings.out).expanduser() if settings.out else run / FOLDER
    at_wandb = wandb_run_of(run) if settings.wandb else None
    if settings.images is None:
        settings = replace(settings, images=IMAGES.get(settings.analysis))
    analysis = read_analysis(folder, settings.analysis) if settings.redraw else _measured(kind, settings)
    if rank() != 0:
        return None
    files = [] if settings.redraw else write_analysis(analysis, folder)
    pictures = kind.draw(analysis, folder / settings.analysis)
    if settings.format == "json":
        print(json.dumps(_as_json(analysis, pictures), ensure_ascii=False))
    else:
        Console().print(kind.summary(analysis))
    for what, where in [("data", files), ("picture", pictures)]:
        for file in where:
            print(f"{what}: {file}", file=sys.stderr)
    if at_wandb is not None:
        show_at_wandb(at_wandb, f"{FOLDER}/{settings.analysis}", pictures)
    return analysis


def _measured(kind: ModuleType, settings: AnalyzeConfig) -> Analysis:
    from geexp.analysis.subject import require_same_images, subject_of
    from geexp.runs.environment import environment

    subjects = [subject_of(str(settings.run), settings)]
    if settings.against is not None:
        subjects.append(subject_of(settings.against, settings, beside=True))
        require_same_images(*subjects)
    identities = [flat(make_job(subject.config).identity) for subject in subjects]
    seeds = [int(leaves.pop("seed")) for leaves in identities]
    labels = labels_of(identities, seeds)
    frames, networks = [], []
    for subject, leaves, seed, label in zip(subjects, identities, seeds, labels, strict=True):
        try:
            with subject.precision():
                frames.append(kind.measure(subject))
        except UserError:
            raise
        except ValueError as error:
            raise ConfigError(f"run={subject.folder}: {str(error).rstrip('.')}.") from error
        networks.append(
            Network(
                label,
                run=str(subject.folder),
                seed=seed,
                checkpoint=str(subject.checkpoint),
                epoch=subject.about.epoch,
                split=settings.split,
                images=subject.image_count,
                identity=leaves,
            )
        )
    tables = {
        name: pd.concat(
            [_named(frame[name], network.label) for frame, network in zip(frames, networks, strict=True)],
            ignore_index=True,
        )
        for name in frames[0]
    }
    made = {
        "at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": f"python -m geexp.analyze {shlex.join(sys.argv[1:])}",
        "environment": environment(),
    }
    given: dict[str, Any] = {key: getattr(settings, key) for key in ("blocks", "stage", "ratios", "images")}
    return Analysis(settings.analysis, tuple(networks), given, tables, made)


def _named(table: pd.DataFrame, label: str) -> pd.DataFrame:
    table = table.copy()
    table.insert(0, "network", label)
    return table


def _as_json(analysis: Analysis, pictures: tuple[Path, ...]) -> dict[str, Any]:
    """Its tables as lists of rows; of empty cells None."""
    return {
        "analysis": analysis.name,
        "networks": [{"label": one.label, "run": one.run, "images": one.images} for one in analysis.networks],
        "tables": {name: json.loads(table.to_json(orient="records")) for name, table in analysis.tables.items()},
        "pictures": [str(path) for path in pictures],
    }
