"""Generate the headers of ``conf/experiment`` and ``conf/sweep``: content, command, GPU-hours, number to reach.

    python scripts/preset_headers.py           # rewrite the headers in place and list the changed files
    python scripts/preset_headers.py --check   # change nothing; list outdated files and exit with code 1

Headers are computed from the composed configuration, the numbers in ``paper.yaml``, the complexity count and the
assumed speed of ``hardware=gpu``. The sweeps link presets to the paper: ``conf/sweep/<table, figure or coco>.yaml``
lists presets in the order of the rows in ``paper.yaml``; for Table 5 each row lists all networks and data sets. The
headers of the demos are written by hand.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from geexp.config.compose import composed_training
from geexp.config.labels import ge_label, model_label, variant_label
from geexp.config.schema import HardwareConfig, TrainConfig
from geexp.launching.budget import FLOPS_PER_MAC, gmacs_per_image, images_per_epoch, images_to_see
from geexp.registry import config_directory
from geexp.report.rows import paper
from geexp.runs.identity import effective_ge
from geexp.runs.job import make_job
from geexp.training.network import count_run

CONF = config_directory()
HARDWARE = HardwareConfig()
TABLES = tuple(f"table{number}" for number in range(1, 7))
FIGURES = ("figure2", "figure4", "figure6")
PLACES = (*TABLES, *FIGURES, "coco")
METRICS = {"table5": "test error {} %", "coco": "mAP {} % on the images of val2014"}
TWO_ERRORS = "top-1 / top-5 error {} % on the validation images, one centre crop each"
# Names of the data sets, and their folders in the commands.
DATA = {
    "imagenet": ("ImageNet", "/data/imagenet"),
    "cifar10": ("CIFAR-10", "/data"),
    "cifar100": ("CIFAR-100", "/data"),
    "coco2014": ("COCO 2014", "/data/coco"),
}


@dataclass(frozen=True)
class Preset:
    """A file of ``conf/experiment``, and the row of the paper that it reproduces, with the printed value if any.

    ``gmacs`` counts one image's forward pass, ``computing`` is the compute time on one GPU in hours, ``feeding`` the
    data loading time in hours, which limits small networks.
    """

    name: str
    place: str
    label: str
    value: str | None
    config: TrainConfig
    run: str
    gmacs: float
    computing: float
    feeding: float

    @property
    def hours(self) -> str:
        return rounded(max(self.computing, self.feeding))


@cache
def presets() -> dict[str, Preset]:
    """All presets of the paper by name, in the order of its tables, figures and rows."""
    found = {}
    for place in PLACES:
        rows = paper()["detection" if place == "coco" else place]["rows"] if place not in FIGURES else []
        for i, name in enumerate(listed(place)):
            row = rows[i * len(rows) // len(listed(place))] if rows else None
            found[name] = _preset(name, place, row)
    return found


def _preset(name: str, place: str, row: dict[str, Any] | None) -> Preset:
    config = composed_training(f"experiment={name}")
    if row is None:
        label, value = ge_label(effective_ge(config.ge, config.model)), None
    elif place == "table5":
        label, value = row["label"], f"{row[config.model.name][config.data.name]:.2f}"
    else:
        label, value = row["label"], f"{row['map']}" if place == "coco" else f"{row['top1']:.2f} / {row['top5']:.2f}"
    gmacs = gmacs_per_image(config) if config.detects else count_run(config).total.macs / 1e9
    images = images_to_see(config)
    computing = images * gmacs * FLOPS_PER_MAC / (HARDWARE.tflops * 1e3) / 3600
    feeding = images / HARDWARE.images_per_second / 3600
    return Preset(name, place, label, value, config, make_job(config).slug, gmacs, computing, feeding)


@cache
def listed(sweep: str) -> tuple[str, ...]:
    """The presets of ``conf/sweep/<sweep>.yaml``, in order."""
    experiments = yaml.safe_load((CONF / f"sweep/{sweep}.yaml").read_text())["hydra"]["sweeper"]["params"]["experiment"]
    if experiments.startswith("glob("):
        pattern = experiments.removeprefix("glob(").removesuffix(")")
        return tuple(sorted(path.stem for path in CONF.glob(f"experiment/{pattern}.yaml")))
    return tuple(experiments.split(", "))


def same_run(preset: Preset) -> list[Preset]:
    """All presets with the same run, including this one."""
    return [other for other in presets().values() if other.run == preset.run]


def backbone_of(detector: Preset) -> str:
    """The preset of Figure 2 that trains the backbone of a detector."""
    folder = str(Path(str(detector.config.backbone_checkpoint)).parents[1])
    of_figure2 = (other for other in presets().values() if other.place == "figure2")
    return next(other.name for other in of_figure2 if fnmatch(f"{other.config.outputs}/{other.run}", folder))


def printed(preset: Preset) -> tuple[str | None, str]:
    """The printed value of a preset; for a curve, the value of the same run in a table, and the name of that table."""
    if preset.value is not None:
        return preset.value, ""
    values = ((other.value, f" ({shown_in(other.place)})") for other in same_run(preset) if other.value is not None)
    return next(values, (None, ""))


def experiment_header(preset: Preset) -> dict[str, str]:
    data, root = DATA[preset.config.data.name]
    value, source = printed(preset)
    number = f"plotted in {shown_in(preset.place)}, not printed"
    if value is not None:
        number = METRICS.get(preset.place, TWO_ERRORS).format(value) + source
    what = f"{_network(preset.config)}, on {data}{_steps(preset.config)}"
    if preset.place == "coco":
        what = f"Faster R-CNN (C4) on {_network(preset.config)}, {data} train to val{_steps(preset.config)}; "
        what += f"train its backbone, {backbone_of(preset)}, first, with the same outputs folder"
    batchnorm = {}
    if preset.config.data.name == "imagenet":
        batchnorm["BN"] = "over 32 images in the authors' files: trainer.devices=8 or trainer.accumulate=8"
    return {
        "What": f"{shown_in(preset.place)}, {preset.label}: {what}.",
        "Command": f"python -m geexp.train experiment={preset.name} data.root={root} trainer=gpu",
        **batchnorm,
        "Hardware": f"about {preset.hours} GPU-hours (estimated, not measured): {_work(preset)}",
        "Number": number,
    }


def _network(config: TrainConfig) -> str:
    model, ge = model_label(config.model.name), effective_ge(config.ge, config.model)
    if config.model.name in ("resnet110", "resnet164"):
        model = f"pre-activation {model}"
    if ge["variant"] == "none":
        return f"{model} without GE"
    words = [model, "with", variant_label(ge["variant"])]
    if ge["variant"] != "se":
        words.append("of global extent" if ge["extent"] == "global" else f"of extent {ge['extent']}")
    if ge["variant"] == "theta_minus":
        words.append(f"by {'average' if ge['pool'] == 'avg' else 'max'} pooling")
    stages = config.ge.stages
    words.append("in every stage" if stages is None else f"in stage {', '.join(map(str, stages))} only")
    return " ".join(words)


def _length(config: TrainConfig) -> str:
    iterations, epochs = config.schedule.iterations, config.schedule.epochs
    return f"{iterations:,} iterations" if iterations else f"{epochs} epochs"


def _steps(config: TrainConfig) -> str:
    schedule = config.schedule
    if not schedule.milestones:
        return ""
    steps = ", ".join(f"{step:,}" for step in schedule.milestones)
    return f", {_length(config)}, learning rate times {schedule.factor:g} after {steps}"


def _work(preset: Preset) -> str:
    config, decimals = preset.config, 1 if preset.gmacs > 100 else 2
    images = config.optim.batch_size if config.schedule.iterations else images_per_epoch(config)
    flops = f"{preset.gmacs:.{decimals}f} GMACs x {FLOPS_PER_MAC} FLOPs at {HARDWARE.tflops:g} TFLOP/s"
    speed = f", each {flops}"
    if preset.computing < preset.feeding:
        speed = f" at {HARDWARE.images_per_second:,.0f} images/s ({flops} would take {rounded(preset.computing)})"
    early = "; less if the fourth plateau comes earlier" if config.schedule.kind == "plateau" else ""
    return f"{_length(config)} of {images:,} images{speed}{early}"


def sweep_header(sweep: str) -> dict[str, str]:
    """The header for a table, a figure, the detection experiment (``coco``), or ``tables`` (all tables)."""
    rows = [presets()[name] for name in listed(sweep)]
    command = f"python -m geexp.train +sweep={sweep} data.root={DATA[rows[0].config.data.name][1]} trainer=gpu"
    if sweep == "tables":  # ImageNet and CIFAR are in different folders
        command = "GEEXP_DATA=/data python -m geexp.train +sweep=tables trainer=gpu"
    return {
        "What": _what_of_sweep(sweep, rows),
        "Command": command,
        "Hardware": _hardware_of_sweep(sweep, rows),
        "Number": _number_of_sweep(sweep, rows),
    }


def _what_of_sweep(sweep: str, rows: Sequence[Preset]) -> str:
    if sweep in TABLES:
        return f"{shown_in(sweep)}, {len(rows)} rows: {paper()[sweep]['title']}."
    if sweep in FIGURES:
        curves = f"{len(rows)} curves of {model_label(rows[0].config.model.name)}{_steps(rows[0].config)}"
        return f"{shown_in(sweep)}, {curves}: {', '.join(row.label for row in rows)}."
    if sweep == "tables":
        return f"Tables 1-6, {len(rows)} rows sorted by name; table1 to table6 have the paper's order."
    options = f"experiment={','.join(map(backbone_of, rows))} data.root={DATA['imagenet'][1]} trainer=gpu"
    text = f"The detection experiment, {len(rows)} rows: Faster R-CNN on COCO 2014, train to val."
    return f"{text} Train their backbones first, with the same outputs folder: python -m geexp.train -m {options}"


def _hardware_of_sweep(sweep: str, rows: Sequence[Preset]) -> str:
    """The total hours, with each run counted once, and the other tables and figures that contain a run."""
    trainings = [row for i, row in enumerate(rows) if row.run not in {other.run for other in rows[:i]}]
    hours = sum(float(row.hours) for row in trainings)
    of_rows = f" of {len(rows)} rows" if len(rows) > len(trainings) else ""
    parts = [f"about {hours:,.0f} GPU-hours (estimated, not measured) for {len(trainings)} runs{of_rows}"]
    here = TABLES if sweep == "tables" else (sweep,)
    for row in trainings:
        elsewhere = ", ".join(shown_in(other.place) for other in same_run(row) if other.place not in here)
        parts += [f"{row.name} is also in {elsewhere}"] if elsewhere else []
    return "; ".join(parts)


def _number_of_sweep(sweep: str, rows: Sequence[Preset]) -> str:
    if sweep == "tables":
        return f"the {len(rows)} rows of Tables 1-6, listed in sweep/table1.yaml to table6.yaml"
    if sweep == "table5":
        models = [model_label(name) for name in paper()[sweep]["columns"]]
        pairs: dict[str, list[str]] = {}
        for ten, hundred in zip(rows[::2], rows[1::2], strict=True):
            pairs.setdefault(ten.label, []).append(f"{ten.value} / {hundred.value}")
        lines = "; ".join(f"{label} {', '.join(values)}" for label, values in pairs.items())
        return f"test error in % on CIFAR-10 / CIFAR-100 of {', '.join(models)}: {lines}"
    values = [f"{row.label} {value}{source}" for row in rows for value, source in [printed(row)] if value]
    parts = [f"{'mAP' if sweep == 'coco' else 'top-1 / top-5 error'} in %: {', '.join(values)}"] if values else []
    if len(values) < len(rows):
        parts.append(f"{'the others are ' if values else ''}plotted in {shown_in(sweep)}, not printed")
    return "; ".join(parts)


def shown_in(place: str) -> str:
    """``Table 2``, ``Figure 4`` or ``COCO``."""
    return "COCO" if place == "coco" else f"{place[:-1].capitalize()} {place[-1]}"


def rounded(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}"


def with_header(text: str, header: dict[str, str]) -> str:
    """A YAML file with the comments below its first line, ``# @package``, replaced by the header."""
    package, *lines = text.splitlines()
    while lines[0].startswith("#"):
        del lines[0]
    for name, words in reversed(header.items()):
        lines.insert(0, fill(f"# {name + ':':9} {words}", 120, subsequent_indent=f"#{'':11}", break_on_hyphens=False))
    return "\n".join([package, *lines, ""])


def outdated() -> dict[Path, str]:
    """The files with an outdated header, with their new content."""
    headers = {CONF / f"experiment/{name}.yaml": experiment_header(preset) for name, preset in presets().items()}
    headers |= {CONF / f"sweep/{sweep}.yaml": sweep_header(sweep) for sweep in (*PLACES, "tables")}
    contents = {path: with_header(path.read_text("utf-8"), header) for path, header in headers.items()}
    return {path: content for path, content in contents.items() if path.read_text("utf-8") != content}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a header is out of date")
    check = parser.parse_args().check
    files = outdated()
    for path, content in files.items():
        if not check:
            path.write_text(content, "utf-8")
        print(f"{'out of date' if check else 'written'}: {path}")
    sys.exit(1 if check and files else 0)


if __name__ == "__main__":
    main()
