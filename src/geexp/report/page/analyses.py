"""The pictures that lie beside runs: of analyses, and of what detectors find."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geexp.analysis.analyse import FOLDER, read_analysis
from geexp.config.errors import DataError
from geexp.report.page import words
from geexp.report.runs import Run
from geexp.runs.run_files import DETECTIONS, PRECISION_RECALL

# What the page shows; of what is beyond, it says how much that is.
PICTURES = 24
WORDS = {
    "selectivity": "Class selectivity",
    "pruning": "Feature importance",
    "receptive_field": "Effective receptive field",
    "gates": "Gates",
}
DETECTORS = {DETECTIONS: "Detections", PRECISION_RECALL: "Precision and recall"}


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
    there = [
        (run, file)
        for run in runs
        for file in (
            *(run.folder / name for name in DETECTORS),
            *(run.folder / FOLDER / f"{name}.png" for name in WORDS),
        )
        if file.is_file()
    ]
    shown = []
    for run, file in there[:PICTURES]:
        try:
            shown.append(_of_detector(run, file) if file.name in DETECTORS else _of_analysis(file))
        except (DataError, OSError):
            continue
    return shown, max(0, len(there) - PICTURES)


def _of_analysis(file: Path) -> AnalysisPicture:
    analysis = read_analysis(file.parent, file.stem)
    networks = ", ".join(f"{one.label} (epoch {one.epoch})" for one in analysis.networks)
    first = analysis.networks[0]
    split = {"val": "validation", "train": "training"}.get(first.split, first.split)
    return AnalysisPicture(
        title=f"{WORDS[file.stem]}: {first.model}, {first.identity['data.name']}",
        facts=f"{networks}; {first.images:,} {split} images",
        command=str(analysis.made.get("command", "")),
        folder=file.parent,
        source=_address(file),
    )


def _of_detector(run: Run, file: Path) -> AnalysisPicture:
    network = words.network(run.result["identity"].get("ge"))
    return AnalysisPicture(
        title=f"{DETECTORS[file.name]}: {run.identity['model.name']}, {run.identity['data.name']}",
        facts=f"{network}, {run.identity['detector.layout']}, seed {run.seed}; mAP {run.figure('map'):.2f} %",
        command=f"python -m geexp.detect mode=predict run={words.as_given(run.folder)}"
        if file.name == DETECTIONS
        else str(run.result.get("command", "")),
        folder=file.parent,
        source=_address(file),
    )


def _address(picture: Path) -> str:
    return f"data:image/png;base64,{b64encode(picture.read_bytes()).decode()}"
