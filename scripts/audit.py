"""Compare what the paper and its sources state with what the presets compose and the networks count.

    python scripts/audit.py    # print the table; exits with 1 if a line differs without a known reason

The statements on training are listed here with their sources; the printed parameters and multiply-accumulates are those
of the tables.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

from rich.console import Console
from rich.table import Table

from geexp.config.compose import composed_training
from geexp.registry import options
from geexp.report.measured import Runs
from geexp.report.report import COMPLEXITY, report_table
from geexp.runs.identity import flat

RESNETS = ("table[1236]_*", "figure[24]_*")
SHUFFLENET = ("table4_*", "figure6_*")
IMAGENET = (*RESNETS, *SHUFFLENET)
PREACT = ("table5_resnet1*",)
WRN = ("table5_wrn*",)
COCO = ("coco_*",)
PLATEAU = ("table[12346]_*", "figure2_*")
FIXED = ("figure[46]_*",)

# Source, presets, and what their configurations must hold.
STATEMENTS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("the paper: batch, learning rate", IMAGENET, {"optim.batch_size": 256, "optim.lr": 0.1}),
    ("the paper: one centre crop of 224", IMAGENET, {"data.evaluation_crop": "centre", "data.image_size": 224}),
    ("SENet: crop and flip", IMAGENET, {"data.augmentation.crop": "resized", "data.augmentation.flip": True}),
    ("SENet's repository: crops of 8-100 %", RESNETS, {"data.augmentation.least_area": 0.08}),
    ("the authors' definitions: BN, groups", IMAGENET, {"model.bn_momentum": 0.05, "optim.decay_bn": False}),
    ("the authors' definitions: biases", IMAGENET, {"optim.decay_biases": False, "optim.bias_lr_factor": 2.0}),
    ("the authors' definitions: initial values", ("*",), {"model.init": "paper", "model.zero_init_residual": False}),
    ("ResNet, SENet: momentum, weight decay", RESNETS, {"optim.momentum": 0.9, "optim.weight_decay": 1e-4}),
    ("ShuffleNet, SENet: weight decay", SHUFFLENET, {"optim.momentum": 0.9, "optim.weight_decay": 4e-5}),
    ("ShuffleNet's later version: milder crops", SHUFFLENET, {"data.augmentation.least_area": 0.25}),
    ("the paper, SENet: /10 at three plateaus", PLATEAU, {"schedule.kind": "plateau", "schedule.reductions": 3}),
    ("the paper, SENet: of the validation loss", PLATEAU, {"schedule.factor": 0.1, "schedule.monitor": "val/loss"}),
    ("the paper: about 300 epochs", ("table[1236]_*", "figure2_*"), {"schedule.epochs": 300}),
    ("the paper: about 400 epochs", ("table4_*",), {"schedule.epochs": 400}),
    ("the paper: Figures 4 and 6", FIXED, {"schedule.epochs": 100, "schedule.milestones": [30, 60, 90]}),
    ("He et al. 2016b: batch, weight decay", PREACT, {"optim.batch_size": 128, "optim.weight_decay": 1e-4}),
    ("He et al. 2016b: 64k iterations", PREACT, {"schedule.iterations": 64000, "schedule.milestones": [32000, 48000]}),
    ("He et al. 2016b: 0.01 for 400 iterations", PREACT, {"schedule.warmup": 400.0, "schedule.warmup_factor": 0.1}),
    ("He et al. 2016a: option A for basic blocks", ("table5_resnet110*",), {"model.shortcut": "A"}),
    ("He et al. 2016b: projections of bottlenecks", ("table5_resnet164*",), {"model.shortcut": "B"}),
    ("the baselines' code: everything decayed", (*PREACT, *WRN), {"optim.decay_bn": True, "optim.decay_biases": True}),
    ("the baselines' code: one rate, from 0.1", (*PREACT, *WRN), {"optim.bias_lr_factor": 1.0, "optim.lr": 0.1}),
    ("WRN: batch, weight decay", WRN, {"optim.batch_size": 128, "optim.weight_decay": 5e-4, "optim.nesterov": True}),
    ("WRN: 200 epochs, times 0.2", WRN, {"schedule.milestones": [60, 120, 160], "schedule.factor": 0.2}),
    ("CIFAR: pad 4, crop, flip", (*PREACT, *WRN), {"data.augmentation.pad": 4, "data.augmentation.flip": True}),
    ("He et al. 2016a: 240k + 80k iterations", COCO, {"schedule.iterations": 320000, "schedule.milestones": [240000]}),
    ("He et al. 2016a: learning rate, batch", COCO, {"optim.lr": 1e-3, "optim.batch_size": 8}),
    ("He et al. 2016a: C4, BN fixed", COCO, {"detector.layout": "c4", "detector.freeze_bn": True}),
    ("py-faster-rcnn: weight decay, test NMS", COCO, {"optim.weight_decay": 5e-4, "detector.nms_at_test": 0.3}),
    ("py-faster-rcnn: beta, regions", COCO, {"detector.box_beta": 1.0, "detector.regions": 128}),
    ("the paper: COCO 2014", COCO, {"data.name": "coco2014"}),
]  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A stated value beside ours; ``reason`` explains a known difference."""

    source: str
    what: str
    stated: str
    ours: str
    agrees: bool
    reason: str = ""


def protocol_lines() -> Iterator[Line]:
    presets = [name for name in options("experiment") if not name.startswith("demo")]
    keys = {name: flat(asdict(composed_training(f"experiment={name}"))) for name in presets}
    for source, patterns, values in STATEMENTS:
        chosen = [name for name in presets if any(fnmatch(name, pattern) for pattern in patterns)]
        for key, value in values.items():
            found = sorted({str(keys[name].get(key)) for name in chosen})
            yield Line(source, f"{key}, {len(chosen)} presets", str(value), ", ".join(found), found == [str(value)])


def complexity_lines() -> Iterator[Line]:
    for number in (1, 2, 3, 4):
        for row in report_table(str(number), Runs([])).rows:
            for column, values in row.complexity.items():
                unit, decimals = COMPLEXITY[column]
                printed, computed = f"{values['printed']:.{decimals}f}", f"{values['computed']:.{decimals + 1}f}"
                reason = "" if values["agrees"] else values["reason"] or ""
                yield Line(f"Table {number}", f"{row.label}, {unit}", printed, computed, values["agrees"], reason)


def lines() -> list[Line]:
    return [*protocol_lines(), *complexity_lines()]


def main() -> None:
    table = Table("source", "what", "stated", "ours", "")
    found = lines()
    for line in found:
        table.add_row(line.source, line.what, line.stated, line.ours, "" if line.agrees else f"≠ {line.reason}")
    Console().print(table)
    wrong = [line for line in found if not line.agrees and not line.reason]
    print(f"{len(found)} lines, {sum(not line.agrees for line in found)} differ, {len(wrong)} without a known reason")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
