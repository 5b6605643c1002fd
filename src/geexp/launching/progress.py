"""How far a run has come, as the files in its folder tell."""

import re
from dataclasses import dataclass
from typing import Any

from geexp.config.errors import UserError
from geexp.config.protocol import planned_epochs, stretched
from geexp.config.schema import TrainConfig
from geexp.launching.jobs import SweepJob
from geexp.runs.lock import is_locked
from geexp.runs.metrics import score_of
from geexp.runs.run_files import LAST, PREVIOUS, checkpoint_folder, read_history, read_result
from geexp.runs.status import Status, read_status

NEW, RUNNING, UNFINISHED, FAILED, DONE = "new", "running", "unfinished", "failed", "done"


@dataclass(frozen=True)
class Progress:
    """The state of a run, one of the five above, and why; what it has reached, as far as it is known.

    ``epoch`` is the number of those finished, ``epochs`` of all, None if the schedule counts iterations. ``error`` and
    ``best`` are top-1 errors on the validation images in percent, ``eta`` the seconds until its end at the speed of its
    last epochs. ``where`` a running one runs; ``seen`` changes as long as it gets on.
    """

    state: str
    reason: str = ""
    epoch: int = 0
    epochs: int | None = None
    error: float | None = None
    best: float | None = None
    eta: float | None = None
    where: str = ""
    seen: tuple[Any, ...] = ()

    def briefly(self) -> str:
        """The state, in a word or two."""
        return {NEW: "not started", UNFINISHED: "stopped"}.get(self.state, self.state)

    def __str__(self) -> str:
        """The state and why."""
        at = f" after epoch {self.epoch}" if self.epoch and self.state in (UNFINISHED, FAILED) else ""
        return f"{self.briefly()}{at}" + (f": {self.reason}" if self.reason and self.state != DONE else "")


def progress_of(job: SweepJob) -> Progress:
    """Look into the folder of the job's run.

    Raises:
        ConfigError: if what lies there came from another configuration, and is not to be trained over by force.
    """
    result, status, history = read_result(job.folder), read_status(job.folder), read_history(job.folder)
    score = score_of(history[-1] if history else {})
    errors = [row[score.key] for row in history if row.get(score.key) is not None]
    reached: dict[str, Any] = {
        "epoch": len(history),
        "epochs": planned_epochs(job.config),
        "error": errors[-1] if errors else None,
        "best": score.best(errors) if errors else None,
    }
    if is_locked(job.folder):
        where = f"process {status.pid} on {status.host}" if status is not None else "another process"
        seen = (status and status.batches, status and status.step, len(history))
        return Progress(RUNNING, **reached, eta=_eta(job.config, history, status), where=where, seen=seen)
    if result is not None:
        if not job.config.force:
            job.require_same(result["identity"])
        return Progress(DONE, _experiment(result), **reached)
    reason = (status and status.reason) or ""
    if status is not None and status.state in ("failed", "diverged"):
        return Progress(FAILED, reason, **reached)
    if any((checkpoint_folder(job.folder) / name).is_file() for name in (LAST, PREVIOUS)):
        return Progress(UNFINISHED, reason, **reached)
    return Progress(NEW)


def progress_now(job: SweepJob) -> Progress:
    """As ``progress_of``, while a sweep runs: a run of another configuration in a job's folder fails that job only."""
    try:
        return progress_of(job)
    except UserError as error:
        return Progress(FAILED, str(error))


def _experiment(result: dict[str, Any]) -> str:
    """As which row of which table it was trained."""
    named = re.search(r"experiment=(\w+)", result.get("command") or "")
    return named[1] if named else ""


def _eta(config: TrainConfig, history: list[dict[str, Any]], status: Status | None) -> float | None:
    if not history:
        return None
    step, seconds = history[-1]["step"], [row["seconds"] for row in history]
    steps_of_an_epoch = step / len(history)
    epochs, iterations = planned_epochs(config), stretched(config.schedule).iterations
    ends = [epochs * steps_of_an_epoch] if epochs else []
    ends += [iterations] if iterations else []
    left = min(ends) - max(step, (status and status.step) or 0)
    return max(0.0, left / steps_of_an_epoch * sum(seconds[-3:]) / len(seconds[-3:]))
