"""The pictures of the analyses that lie beside runs."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geexp.config.errors import DataError
from geexp.results.analyses.stored import FOLDER, read_analysis
from geexp.results.runs import Run

# What the page shows; of what is beyond, it says how much that is.
PICTURES = 24
WORDS = {
    "selectivity": "Class selectivity",
    "pruning": "Feature importance",
    "receptive_field": "Effective receptive field",
    "gates": "Gates",
}


@dataclass(frozen=True)
class AnalysisPicture:
    """``source`` is the picture itself as an address; ``facts`` says of which networks and images it is."""

    title: str
    facts: str
    command: str
    folder: Path
    source: str


def pictures_of(runs: Sequence[Run]) -> tuple[list[AnalysisPicture], int]:
    """Those that can be read, run by run, and how many more there are."""
    places = [(run.folder / FOLDER, name) for run in runs for name in WORDS]
    there = [(folder, name) for folder, name in places if (folder / f"{name}.png").is_file()]
    shown = []
    for folder, name in there[:PICTURES]:
        try:
            analysis = read_analysis(folder, name)
            picture = (folder / f"{name}.png").read_bytes()
        except (DataError, OSError):
            continue
        networks = ", ".join(f"{one.label} (epoch {one.epoch})" for one in analysis.networks)
        first = analysis.networks[0]
        split = {"val": "validation", "train": "training"}.get(first.split, first.split)
        shown.append(
            AnalysisPicture(
                title=f"{WORDS[name]}: {first.model}, {first.identity['data.name']}",
                facts=f"{networks}; {first.images:,} {split} images",
                command=str(analysis.made.get("command", "")),
                folder=folder,
                source=f"data:image/png;base64,{b64encode(picture).decode()}",
            )
        )
    return shown, max(0, len(there) - PICTURES)
