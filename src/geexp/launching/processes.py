"""``launcher=processes``: each job a process tree of its own, as many side by side as there are devices for."""

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geexp.config.errors import PREEMPTED
from geexp.config.schema import LauncherConfig
from geexp.launching.board import Board
from geexp.launching.cost import cost
from geexp.launching.devices import Devices
from geexp.launching.plan import Row
from geexp.launching.process_tree import ProcessTree, noted_signals
from geexp.launching.progress import DONE, FAILED, RUNNING, UNFINISHED, Progress, progress_now
from geexp.runs.run_files import RESULT
from geexp.runs.status import STATUS, read_status

CONSOLE = "console.log"
_LOOK_EVERY = 0.2  # seconds: for processes that have ended
_FILES_EVERY = 1.0  # for what the files of running ones say

Stamp = tuple[int, int] | None


@dataclass
class _Running:
    row: Row
    tree: ProcessTree
    devices: list[str]
    before: dict[str, Stamp]
    looked_at: float = 0.0
    seen: tuple[Any, ...] = ()
    seen_at: float = field(default_factory=time.monotonic)
    hung: bool = False


def train_in_processes(rows: Sequence[Row], settings: LauncherConfig, board: Board) -> None:
    """Train what the plan has to train, the longest first, and leave in every row how it ended.

    A job that fails, or hangs, leaves the others running. After SIGINT, SIGTERM or SIGUSR1 nothing more is started;
    what runs is asked to stop with a checkpoint, and killed after ``settings.grace`` seconds.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when nothing runs any more; a second one kills what still does.
        SystemExit: with the code of a preempted run, after the other signals.
    """
    waiting = sorted((row for row in rows if row.to_train), key=lambda row: -cost(row.job.config))
    devices = Devices([row.job for row in waiting], settings.devices)
    running: list[_Running] = []
    with noted_signals() as received, board:
        try:
            while waiting or running:
                if received:
                    _stop(running, received, settings.grace, board)
                    break
                for row in list(waiting):
                    job = _start(row, devices)
                    if job is not None:
                        running.append(job)
                        board.note(row, f"starts on {', '.join(job.devices)}: {row.job.folder / CONSOLE}")
                    done_by_another = job is None and row.progress.state == DONE and not row.to_train
                    if done_by_another:
                        board.note(row, str(row.progress))
                    if job is not None or done_by_another:
                        waiting.remove(row)
                for job in list(running):
                    if _over(job, settings):
                        running.remove(job)
                        devices.give_back(job.devices)
                        if job.row.progress.state == RUNNING:
                            waiting.append(job.row)
                        board.note(job.row, _in_words(job.row))
                board.update()
                time.sleep(_LOOK_EVERY)
        finally:
            for job in running:
                job.tree.kill()
    if received:
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(PREEMPTED)


def _start(row: Row, devices: Devices) -> _Running | None:
    """None if there are not enough free devices, or if another process trains the run or has trained it meanwhile."""
    taken = devices.take(row.job.config.trainer.devices)
    if taken is None:
        return None
    row.progress = progress_now(row.job)
    if row.progress.state == RUNNING or not row.to_train:
        devices.give_back(taken)
        return None
    folder = row.job.folder
    folder.mkdir(parents=True, exist_ok=True)
    before = {name: _stamp(folder / name) for name in (RESULT, STATUS)}
    tree = ProcessTree(
        row.job.arguments(), processes=len(taken), log=folder / CONSOLE, environment=devices.environment(taken)
    )
    row.progress = replace(row.progress, state=RUNNING, reason="", where=", ".join(taken))
    return _Running(row, tree, taken, before)


def _in_words(row: Row) -> str:
    if row.progress.state == RUNNING:
        return f"{row.progress.where} trains it already; waits for it"
    return str(row.progress)


def _over(job: _Running, settings: LauncherConfig) -> bool:
    """Whether the job has ended; then its row says how."""
    code = job.tree.poll()
    if code is None:
        if time.monotonic() - job.looked_at > _FILES_EVERY:
            _look(job, settings)
        return False
    job.row.progress = _how_it_ended(job, code, settings)
    return True


def _look(job: _Running, settings: LauncherConfig) -> None:
    now = progress_now(job.row.job)
    job.looked_at = time.monotonic()
    job.row.progress = replace(now, state=RUNNING, where=", ".join(job.devices))
    if now.seen != job.seen:
        job.seen, job.seen_at = now.seen, job.looked_at
    elif settings.hang_after is not None and job.looked_at - job.seen_at > settings.hang_after * 60:
        job.hung = True
        job.tree.kill()


def _how_it_ended(job: _Running, code: int, settings: LauncherConfig) -> Progress:
    """Done is exit code 0 and a result that was not there before: exit codes alone lie. Running, if another process
    trains it, which was the first to begin; one of ours would not be left."""
    folder, now = job.row.job.folder, progress_now(job.row.job)
    if code != 0 and not job.hung and now.state == RUNNING:
        return now
    fresh = {name: _stamp(folder / name) != stamp for name, stamp in job.before.items()}
    if code == 0 and fresh[RESULT] and now.state == DONE:
        return now
    status = read_status(folder) if fresh[STATUS] else None
    state, told = (status.state, status.reason or "") if status is not None else ("", "")
    if job.hung:
        reason = f"no step and no batch for {settings.hang_after:g} minutes (launcher.hang_after); it was killed"
    elif code > 0 and state in ("preempted", "interrupted"):
        return replace(now, state=UNFINISHED, reason=told)
    elif code == 0:
        another = now.reason if fresh[RESULT] and now.state == FAILED else ""
        reason = another or "it ended with exit code 0, but without a result"
    elif code < 0:
        reason = f"its first process was killed by signal {-code}"
    else:
        own = code < 128 and state in ("failed", "diverged")  # the others know little of a killed one
        reason = f"{told if own else _last_line(folder / CONSOLE) or 'it said nothing'} (exit code {code})"
    return replace(now, state=FAILED, reason=reason)


def _last_line(path: Path) -> str:
    """What our entry points said last, if they did; else the last line of all."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("geexp.train")]
    return (ours or lines or [""])[-1].removeprefix("geexp.train: ")


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _stop(running: list[_Running], received: list[int], grace: float, board: Board) -> None:
    """Ask all that runs to stop; kill what has not after ``grace`` seconds or a second Ctrl-C."""
    board.stopping(received[0], len(running), grace)
    deadline = time.monotonic() + grace
    while running:
        if time.monotonic() > deadline or signal.SIGINT in received[1:]:
            for job in running:
                job.tree.kill()
        for job in list(running):
            job.tree.ask(received[0])
            if job.tree.poll() is not None:
                running.remove(job)
                job.row.progress = progress_now(job.row.job)
                board.note(job.row, str(job.row.progress))
        board.update()
        time.sleep(_LOOK_EVERY)
