"""Runs logged to W&B as finished runs: configuration and summary together hold what ``result.json`` holds.

Their ``folder`` is ``wandb:<entity>/<project>/<id>``, which is not a path on disk.
"""

from functools import partial
from pathlib import Path
from typing import Any

from geexp.config.compose import validated
from geexp.config.errors import ConfigError, DataError, UserError
from geexp.config.schema import TrainConfig
from geexp.data.parallel import with_bar
from geexp.report.runs import FinishedRun, LeftOut
from geexp.runs.identity import nested
from geexp.runs.job import make_job
from geexp.runs.run import Result
from geexp.training.wandb_content import EPOCH, ERROR, LABEL, NETWORK, WEIGHTS, usual_mode

PREFIX = "wandb:"


def read_wandb(path: str, api: Any = None) -> tuple[list[FinishedRun], list[LeftOut]]:
    """All runs of ``<entity>/<project>``.

    Raises:
        ConfigError: if no API key is configured.
        DataError: if the project does not exist, or W&B does not respond.
    """
    import wandb

    api = api or logged_in_api()
    path = path.removeprefix(PREFIX)
    runs: list[FinishedRun] = []
    left_out: list[LeftOut] = []
    try:
        for remote in with_bar(api.runs(path, lazy=False), f"reading the runs of {path}"):
            found = _read(Path(f"{PREFIX}{path}/{remote.id}"), remote)
            if isinstance(found, FinishedRun):
                runs.append(found)
            else:
                left_out.append(found)
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise DataError(f"{PREFIX}{path}: {str(error).splitlines()[0]}") from error
    return runs, left_out


def logged_in_api() -> Any:
    """W&B's API, for reading runs and writing reports.

    Raises:
        ConfigError: if no API key is configured.
    """
    import wandb

    if usual_mode() == "offline":
        raise ConfigError("nobody is logged in at W&B on this machine: say wandb login, or set WANDB_API_KEY.")
    return wandb.Api(timeout=30)


def _read(place: Path, remote: Any) -> FinishedRun | LeftOut:
    result = dict(remote.summary).get("result")
    if result is None:
        return LeftOut(place, "still running" if remote.state == "running" else f"not finished ({remote.state})")
    config = nested({key: value for key, value in remote.config.items() if key not in (NETWORK, LABEL, "_wandb")})
    try:
        known = make_job(validated(TrainConfig, config)).identity
    except UserError as error:
        return LeftOut(place, f"of another version of geexp, with other settings: {error}")
    if "weights" in known:  # the file is on another machine
        known["weights"] = dict(remote.summary).get(WEIGHTS)
    if "detector" in known:  # its backbone's file lies elsewhere
        known["detector"]["backbone"] = (_plain(result).get("backbone") or {}).get("file")
    try:
        whole = Result.of_json({**_plain(result), "identity": known, "config": config})
    except ValueError as error:
        return LeftOut(place, f"its result {error}")
    return FinishedRun(place, whole, partial(_history, remote))


def _history(remote: Any) -> list[dict[str, Any]]:
    rows = {
        int(row[EPOCH]): {key: value for key, value in row.items() if not key.startswith("_")}
        for row in remote.scan_history()
        if row.get(EPOCH) is not None and row.get(ERROR) is not None
    }
    return [rows[epoch] | {EPOCH: epoch} for epoch in sorted(rows)]


def _plain(tree: Any) -> Any:
    """Convert W&B's dictionaries to plain ones."""
    return {key: _plain(value) for key, value in tree.items()} if hasattr(tree, "items") else tree
