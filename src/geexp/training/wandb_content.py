"""What W&B is given besides the history (summary, final charts), its mode, and the translation of its errors."""

import netrc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from geexp.config.errors import ConfigError, bad_value
from geexp.config.schema import LoggerConfig
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

# The values of WANDB_MODE that W&B knows, two of them by an older name.
MODES = {mode: mode for mode in ("online", "offline", "shared", "disabled")} | {"dryrun": "offline", "run": "online"}


def mode_in_environment() -> str | None:
    """The mode set by the variable ``WANDB_MODE``; None if it is not set.

    Raises:
        ConfigError: for any other value, also an empty one. W&B fails because of it, whatever mode it is started with.
    """
    value = os.environ.get("WANDB_MODE")
    if value is None:
        return None
    if value not in MODES:
        raise bad_value("WANDB_MODE", value, MODES, hint="Correct or unset this environment variable.")
    return MODES[value]


def mode_of(logger: LoggerConfig) -> str:
    """The mode to start W&B with: ``logger.mode``, else ``WANDB_MODE``, else the usual one."""
    in_environment = mode_in_environment()
    return logger.mode if logger.mode != "auto" else in_environment or usual_mode()


@contextmanager
def translate_wandb_errors() -> Iterator[None]:
    """Raise ConfigError if W&B rejects a setting, such as one that it reads from a variable ``WANDB_…``."""
    import wandb
    from pydantic import ValidationError

    try:
        yield
    except (wandb.Error, ValidationError) as error:
        reason = " ".join(str(error).partition("For further information")[0].split()).rstrip(".")
        raise ConfigError(
            f"W&B cannot start: {reason}. Correct the keys of logger or the environment variables WANDB_…, or choose "
            "logger=csv."
        ) from error


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
