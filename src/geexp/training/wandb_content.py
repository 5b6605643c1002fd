"""The content of a W&B run besides its history (summary and final charts), and the default mode, online or offline."""

import netrc
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from geexp.runs.metrics import AP, score_of
from geexp.runs.run import Result

if TYPE_CHECKING:
    from geexp.training.task import Charts

# Additional config keys to group runs by: the network, and everything but the seed. Without dots, which W&B's interface
# interprets as nested levels.
NETWORK, LABEL = "network", "label"
# Metrics logged for every epoch, as in history.jsonl.
EPOCH, ERROR, TRAIN_ERROR = "epoch", "val/top1_error", "train/top1_error"
# Summary entries that dashboards show; the rest of result.json is under "result".
BEST, LAST, LAST5, PARAMS, MACS = "best/top1_error", "last/top1_error", "last/top5_error", "params", "macs"
WEIGHTS = "weights"  # the digest of the initial ones
BEST_AP, LAST_AP, LAST_AP50, LOSS = "best/AP", "last/AP", "last/AP50", "train/loss"
# The final charts.
CURVES, HISTORY, CONFUSION, CONFUSED = "curves/top1_error", "curves/history", "confusion/matrix", "confusion/pairs"


def usual_mode() -> str:
    """``online`` if an API key is configured, in the environment or in the netrc file; else ``offline``."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname or ""
    try:
        return "online" if netrc.netrc(os.environ.get("NETRC")).authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


def define_metrics(run: Any) -> None:
    """Make the epoch the x-axis of every curve, and add the best score to the summary."""
    run.define_metric(EPOCH)
    for name in ("train/*", "val/*", "lr", "seconds"):
        run.define_metric(name, step_metric=EPOCH)
    for name in (ERROR, "val/top5_error"):
        run.define_metric(name, step_metric=EPOCH, summary="min,last")
    run.define_metric(AP.key, step_metric=EPOCH, summary="max,last")


def charts(history: list[dict[str, Any]], final: "Charts | None") -> dict[str, Any]:
    """The curves over all epochs, including those before a resumed start, and the charts of the last validation."""
    import wandb

    columns, score = list(history[-1]), score_of(history[-1])
    lines = {"training images, augmented": score.key.replace("val/", "train/"), "validation images": score.key}
    lines = {title: key for title, key in lines.items() if key in columns}
    rows: list[Iterable[Any]] = [[row.get(column) for column in columns] for row in history]
    shown: dict[str, Any] = {
        CURVES: wandb.plot.line_series(
            [row[EPOCH] for row in history],
            [[row.get(key) for row in history] for key in lines.values()],
            keys=list(lines),
            title=f"{score.name}, %",
            xname=EPOCH,
        ),
        HISTORY: wandb.Table([*columns], rows),
    }
    return shown if final is None else shown | final.to_wandb()


def summary(result: Result, metrics: tuple[str, ...]) -> dict[str, Any]:
    """The best and last values of ``metrics``, and under ``result`` all of result.json except the configuration."""
    figures = {
        f"{which}/{key.removeprefix('val/')}": result.metrics[which][key]
        for which in ("best", "last")
        for key in metrics
    }
    if "weights" in result.identity:  # the configuration has only the path of the file
        figures[WEIGHTS] = result.identity["weights"]
    kept = {key: value for key, value in result.as_json().items() if key not in ("config", "identity")}
    return figures | {
        "best/epoch": result.metrics["best"]["epoch"],
        PARAMS: result.complexity["params"],
        MACS: result.complexity["macs"],
        "seconds": result.seconds,
        "result": kept,
    }
