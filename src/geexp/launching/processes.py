"""``launcher=processes``: each job in its own process tree, in parallel on the available devices."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from geexp.config.errors import ConfigError
from geexp.config.schema import LauncherConfig
from geexp.data.parallel import SHARE, processors
from geexp.launching.budget import cost
from geexp.launching.jobs import SweepJob
from geexp.launching.live_table import LiveTable
from geexp.launching.plan import DONE, FAILED, RUNNING, UNFINISHED, Progress, Row, progress_now
from geexp.launching.supervisor import POLL_EVERY, ProcessTree, Supervisor, thread_limit
from geexp.runs.run_files import RESULT
from geexp.runs.status import STATUS, read_status

CONSOLE = "console.log"
_READ_FILES_EVERY = 1.0  # seconds
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# Run in another process, since it initialises CUDA.
_PRINT_NUMBER_OF_GPUS = """
import ctypes
cuda, number = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
print(number.value if cuda.cuInit(0) == cuda.cuDeviceGetCount(ctypes.byref(number)) == 0 else 0)
"""

Stamp = tuple[int, int] | None


class Devices:
    """The free and busy devices of this machine, by CUDA name; without GPUs, slots for processes.

    Args:
        jobs: all jobs that will run.
        wanted: ``launcher.devices``: a number, a list of indices into the visible GPUs or of their names, or ``auto``
            for all of them. Without GPUs ``auto`` is the number of slots of the largest job, so that jobs run one after
            another.

    Raises:
        ConfigError: if a job needs more devices than there are, or several nodes, or if a wanted GPU is not visible.
    """

    def __init__(self, jobs: Sequence[SweepJob], wanted: Any) -> None:
        largest = max((job.config.trainer.devices for job in jobs), default=1)
        on_gpus = any(job.config.trainer.accelerator in ("auto", "gpu") for job in jobs)
        gpus = visible_gpus() if on_gpus else []
        self._gpus = bool(gpus)
        if isinstance(wanted, list):
            names = [_gpu(name, gpus, wanted) for name in wanted] if gpus else [str(name) for name in wanted]
        elif wanted == "auto":
            names = gpus or [str(place) for place in range(largest)]
        else:
            if gpus and wanted > len(gpus):
                raise ConfigError(f"launcher.devices={wanted}: only {_these(gpus)}. Use that many or fewer, or auto.")
            names = (gpus or [str(place) for place in range(wanted)])[:wanted]
        self._names = tuple(names)
        self.total = len(names)
        self._used = min(self.total, sum(job.config.trainer.devices for job in jobs))  # at once, at most
        self._free = names
        for job in jobs:
            if job.config.trainer.nodes > 1:
                raise ConfigError(
                    f"trainer.nodes={job.config.trainer.nodes}: this launcher runs jobs on a single node. With SLURM "
                    "use hydra/launcher=geexp_slurm; otherwise start the command from dry_run=true on every node."
                )
            if job.config.trainer.devices > self.total:
                raise ConfigError(
                    f"trainer.devices={job.config.trainer.devices}: a job needs that many, but only {self.total} "
                    f"{'GPUs' if self._gpus else 'slots'} are available (launcher.devices={wanted}). Use fewer "
                    "trainer.devices, or more launcher.devices."
                )

    def take(self, number: int) -> list[str] | None:
        """Reserve ``number`` devices; None if fewer are free."""
        if number > len(self._free):
            return None
        taken, self._free = self._free[:number], self._free[number:]
        return taken

    def give_back(self, taken: list[str]) -> None:
        self._free = sorted([*self._free, *taken], key=self._names.index)

    def environment(self, taken: Sequence[str]) -> dict[str, str]:
        """Environment variables that restrict a job's processes to these devices and to their share of the CPUs."""
        gpus = {_VISIBLE: ",".join(taken)} if self._gpus else {}
        share = {SHARE: str(max(1, processors() * len(taken) // self._used))} if len(taken) < self._used else {}
        return gpus | share | thread_limit(self.total)


def visible_gpus() -> list[str]:
    """The names of the GPUs available to this process: those in CUDA_VISIBLE_DEVICES, or the indices of all.

    The driver is asked in the second case only: it counts at most one of several MIG devices.
    """
    named = os.environ.get(_VISIBLE)
    if named is not None:  # CUDA reads it up to the first name that is empty or negative; SLURM writes NoDevFiles
        names = (name.strip() for name in named.split(","))
        return list(takewhile(lambda name: name not in ("", "NoDevFiles") and not name.startswith("-"), names))
    command = [sys.executable, "-I", "-S", "-c", _PRINT_NUMBER_OF_GPUS]
    try:
        number = int(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    except subprocess.SubprocessError:  # no driver
        return []
    return [str(index) for index in range(number)]


def _gpu(name: int | str, gpus: Sequence[str], wanted: Sequence[int | str]) -> str:
    """The CUDA name of a GPU that is named by its index among the visible ones, or by its UUID or MIG identifier."""
    text = str(name)
    if text.isdecimal() and int(text) < len(gpus):
        return gpus[int(text)]
    if text.startswith(("GPU-", "MIG-")) and (text in gpus or _VISIBLE not in os.environ):
        return text
    raise ConfigError(
        f"launcher.devices={list(wanted)}: there is no GPU {name}; {_these(gpus)}. Use indices 0 to {len(gpus) - 1}."
    )


def _these(gpus: Sequence[str]) -> str:
    visible = f" ({_VISIBLE}={os.environ[_VISIBLE]})" if _VISIBLE in os.environ else ""
    return f"{len(gpus)} GPU{'s are' if len(gpus) > 1 else ' is'} visible{visible}"


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


def train_in_processes(rows: Sequence[Row], table: LiveTable) -> None:
    """Train all unfinished rows, the longest first, and store the outcome in each row's ``progress``.

    If a job fails or hangs, the others continue. After SIGINT, SIGTERM or SIGUSR1 no more jobs are started; running
    jobs are stopped with a checkpoint, and killed after ``launcher.grace`` seconds or a second Ctrl-C.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once all jobs have ended.
        SystemExit: with the exit code of a preempted run, after the other signals.
    """
    settings = rows[0].job.config.launcher
    waiting = sorted((row for row in rows if row.to_train), key=lambda row: -(cost(row.job.config) or 0))
    devices = Devices([row.job for row in waiting], settings.devices)
    running: list[_Running] = []
    announced = False
    with Supervisor(grace=settings.grace) as supervisor, table:
        while running or (waiting and supervisor.signal is None):
            for row in list(waiting) if supervisor.signal is None else ():
                job = _start(row, devices, supervisor)
                if job is not None:
                    waiting.remove(row)
                    running.append(job)
                    table.note(row, f"starts on {', '.join(job.devices)}: {row.job.folder / CONSOLE}")
                elif row.progress.state == DONE and not row.to_train:  # another process has trained it meanwhile
                    waiting.remove(row)
                    table.note(row, str(row.progress))
            if supervisor.signal is not None and not announced:
                announced = True
                table.stopping(supervisor.signal, len(running), settings.grace)
            for job in list(running):
                if _has_ended(job, supervisor, settings):
                    running.remove(job)
                    devices.give_back(job.devices)
                    told = str(job.row.progress)
                    if job.row.progress.state == RUNNING:
                        waiting.append(job.row)
                        told = f"already being trained by {job.row.progress.where}; waits for it"
                    table.note(job.row, told)
            table.update()
            time.sleep(POLL_EVERY)
    supervisor.end_as_signalled()


def _start(row: Row, devices: Devices, supervisor: Supervisor) -> _Running | None:
    """Start a job; None if too few devices are free, or if another process is training or has trained the run."""
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
    tree = supervisor.start(
        row.job.arguments(), processes=len(taken), log=folder / CONSOLE, environment=devices.environment(taken)
    )
    row.progress = replace(row.progress, state=RUNNING, reason="", where=", ".join(taken))
    return _Running(row, tree, taken, before)


def _has_ended(job: _Running, supervisor: Supervisor, settings: LauncherConfig) -> bool:
    """Whether the job has ended; if so, the row's ``progress`` is set to the outcome."""
    code = supervisor.poll(job.tree)
    if code is not None:
        job.row.progress = (
            _how_it_ended(job, code, settings) if supervisor.signal is None else progress_now(job.row.job)
        )
        return True
    if supervisor.signal is not None:
        return False
    if time.monotonic() - job.looked_at > _READ_FILES_EVERY:
        now = progress_now(job.row.job)
        job.looked_at = time.monotonic()
        job.row.progress = replace(now, state=RUNNING, where=", ".join(job.devices))
        if now.seen != job.seen:
            job.seen, job.seen_at = now.seen, job.looked_at
        elif settings.hang_after is not None and job.looked_at - job.seen_at > settings.hang_after * 60:
            job.hung = True
            job.tree.kill()
    return False


def _how_it_ended(job: _Running, code: int, settings: LauncherConfig) -> Progress:
    """The outcome of a job that has ended.

    DONE means a new result and exit code 0; an exit code alone is not sufficient. RUNNING means that another process
    started the run first and is training it, while this job's processes have all ended.
    """
    folder, now = job.row.job.folder, progress_now(job.row.job)
    if code != 0 and not job.hung and now.state == RUNNING:
        return now
    fresh = {name: _stamp(folder / name) != stamp for name, stamp in job.before.items()}
    status = read_status(folder) if fresh[STATUS] else None
    state, recorded = (status.state, status.reason or "") if status is not None else ("", "")
    # This job fails if another process started the run first; that process may have completed it meanwhile.
    if fresh[RESULT] and now.state == DONE and (code == 0 or state == "complete"):
        return now
    if job.hung:
        reason = f"killed, after {settings.hang_after:g} minutes without a step or batch (launcher.hang_after)"
    elif code > 0 and state in ("preempted", "interrupted"):
        return replace(now, state=UNFINISHED, reason=recorded)
    elif code == 0:
        another = now.reason if fresh[RESULT] and now.state == FAILED else ""
        reason = another or "ended with exit code 0, but without a result"
    elif code < 0:
        reason = f"the main process was killed by signal {-code}"
    else:
        own = code < 128 and state in ("failed", "diverged")  # other ranks' messages do not explain a killed rank
        reason = f"{recorded if own else _last_line(folder / CONSOLE) or 'no output'} (exit code {code})"
    return replace(now, state=FAILED, reason=reason)


def _last_line(path: Path) -> str:
    """The last line written by geexp's entry points, or else the last line of the file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("geexp.train")]
    return (ours or lines or [""])[-1].removeprefix("geexp.train: ")


def _stamp(path: Path) -> Stamp:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_ino
    return None
