"""How submitted jobs are: what SLURM's queue says of them and, when they have left it, what their runs say."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from geexp.launching.jobs import SweepJob
from geexp.runs.run_files import read_result
from geexp.runs.status import Status, read_status

log = logging.getLogger(__name__)

PENDING, RUNNING, COMPLETE, FAILED = "pending", "running", "complete", "failed"


@dataclass(frozen=True)
class Submitted:
    """A job in SLURM, and where its first rank's output goes."""

    job: SweepJob
    slurm_id: str
    log: Path


@dataclass(frozen=True)
class Change:
    """A job is now ``pending``, ``running``, ``complete`` or ``failed``: why, or where."""

    submitted: Submitted
    state: str
    detail: str

    @property
    def over(self) -> bool:
        return self.state in (COMPLETE, FAILED)


@dataclass(frozen=True)
class InQueue:
    """SLURM's words for the state of a job, what it waits for or ended of, and its nodes."""

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def over(self) -> bool:
        return self.state in _OVER


# PREEMPTED is not among them: such a job may be requeued yet, or it disappears.
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "GONE"}


def queue() -> dict[str, InQueue]:
    """The jobs of this user that SLURM still knows of, ended some minutes ago at most.

    squeue needs no accounting database, which sacct does, and is not late.

    Raises:
        subprocess.CalledProcessError: if the controller does not answer.
    """
    command = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%r|%N"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {slurm_id: InQueue(*words) for slurm_id, *words in (line.strip().split("|", 3) for line in lines)}


def watch(submitted: Sequence[Submitted], *, every: float = 15.0) -> Iterator[Change | None]:
    """Yield each change of a job's state, from its first one, until all are complete or failed.

    After each look at the queue there is a None, for who wants to look at the runs as well.

    A job is complete if SLURM knows of no failure and its run has a result: exit codes alone are no proof.
    Ctrl-C ends the waiting, not the jobs, and says how they are ended.
    """
    left = {entry.slurm_id: entry for entry in submitted}
    before = {entry.slurm_id: read_status(entry.job.folder) for entry in submitted}
    states: dict[str, str] = {}
    try:
        while left:
            try:
                known = queue()
            except subprocess.CalledProcessError as error:
                log.warning("squeue: %s Asking again.", " ".join(error.stderr.split()))
                time.sleep(every)
                continue
            for slurm_id, entry in list(left.items()):
                change = _change(entry, known.get(slurm_id, InQueue("GONE")), before[slurm_id])
                if change.over:
                    del left[slurm_id]
                if states.get(slurm_id) != change.state:
                    again = slurm_id in states and change.state == PENDING
                    states[slurm_id] = change.state
                    yield Change(entry, change.state, "preempted, goes on in its next turn") if again else change
            yield None
            if left:
                time.sleep(every)
    except (KeyboardInterrupt, GeneratorExit):
        arrays = sorted({slurm_id.partition("_")[0] for slurm_id in left}, key=int)
        if arrays:
            print(
                f"\nThe jobs go on in SLURM. The same command waits for them again; this ends them: "
                f"scancel {' '.join(arrays)}",
                file=sys.stderr,
            )
        raise


def _change(entry: Submitted, now: InQueue, status_before: Status | None) -> Change:
    if now.state in ("RUNNING", "COMPLETING"):
        return Change(entry, RUNNING, f"job {entry.slurm_id} on {now.nodes}")
    if not now.over:
        return Change(entry, PENDING, f"job {entry.slurm_id}" + (f", {now.reason}" if now.reason != "None" else ""))
    folder = entry.job.folder
    if folder.is_dir():
        list(folder.iterdir())  # a network file system would else say what it knew of the folder some time ago
    if now.state in ("COMPLETED", "GONE") and read_result(folder) is not None:
        return Change(entry, COMPLETE, str(folder))
    status = read_status(folder)
    told = status.reason if status and status != status_before and status.state != "preempted" else None
    reason = _of_another_rank(entry.log) or told or _last_words(entry.log) or "no output"
    return Change(entry, FAILED, f"{reason} (job {entry.slurm_id}: {now.state.lower()}, log: {entry.log})")


def _of_another_rank(path: Path) -> str:
    """Why another rank failed, and took the first one down; srun names it in the output of the first one."""
    ended = re.search(r"^srun: error: \S+: tasks? (\d+)\S*: (.*)", _text(path), re.MULTILINE)
    if ended is None or ended[1] == "0":
        return ""
    rank, how = ended.groups()
    other = path.with_name(path.name.replace("_0_log", f"_{rank}_log"))
    return f"rank {rank}: {_last_words(other) or how} ({other.name})"


def _last_words(path: Path) -> str:
    """The last line that a training printed, in between those that SLURM and submitit print."""
    others = ("srun:", "slurmstepd", "scontrol:", "submitit ")
    own = [line for line in _text(path).splitlines() if not line.startswith(others)]
    return next((line.strip() for line in reversed(own) if line.strip()), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
