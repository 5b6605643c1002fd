"""Jobs of a sweep without a process, and folders of runs in any state."""

from dataclasses import asdict
from pathlib import Path

from geexp.launching.jobs import SweepJob
from geexp.runs.run import Result
from geexp.runs.run_files import LAST, append_row, checkpoint_folder, write_json
from geexp.runs.status import STATUS, Status
from tests.support.configuration import job


def sweep_job(folder: Path, *overrides: str, number: int = 0, run: Path | None = None) -> SweepJob:
    """A job whose run lies where it would below ``folder``, or in ``run``."""
    made = job(folder, *overrides)
    place = run or folder / made.slug
    return SweepJob(made.config, made.identity, place, number, (*overrides, "hydra.mode=RUN"))


def sweep_jobs(folder: Path, *each: str) -> list[SweepJob]:
    """A job for each command line."""
    return [sweep_job(folder, *words.split(), number=number) for number, words in enumerate(each)]


def finish(done: SweepJob, *, seconds: float = 60.0, epochs: int = 5, command: str = "python -m geexp.train") -> None:
    """Write a complete run of ten thousand images per epoch on one device."""
    done.folder.mkdir(parents=True)
    metrics = {which: {"epoch": epochs, "val/top1_error": 14.5} for which in ("last", "best")}
    Result(
        identity=done.identity,
        metrics=metrics,
        epochs=epochs,
        seconds=seconds,
        complexity={"params": 1, "macs": 1},
        config=asdict(done.config),
        command=command,
        devices={"count": 1},
    ).write(done.folder)
    reach(done, 1, 14.5)


def reach(begun: SweepJob, epoch: int, error: float, *, seconds: float = 60.0) -> None:
    """Add an epoch of a hundred steps to the run's history."""
    begun.folder.mkdir(parents=True, exist_ok=True)
    row = {"epoch": epoch, "step": epoch * 100, "seconds": seconds, "val/top1_error": error}
    append_row(begun.folder / "history.jsonl", row)


def leave(unfinished: SweepJob, state: str, reason: str | None = None) -> None:
    """Write a run that ended in ``state`` with a checkpoint, or was killed: ``running``."""
    checkpoint_folder(unfinished.folder).mkdir(parents=True, exist_ok=True)
    (checkpoint_folder(unfinished.folder) / LAST).touch()
    write_json(unfinished.folder / STATUS, asdict(Status(state, "elsewhere", reason=reason, heartbeat=0.0)))
