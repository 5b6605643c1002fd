"""A training as a process tree of its own: started, asked to stop, and never left behind."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

_TORCHRUN = "geexp.launching.torchrun"

# Every process of a tree has it in its environment, also one whose parent has died.
_MARK = "GEEXP_PROCESS_TREE"
# What would make a process believe that it is one of several, or another run.
_NOT_INHERITED = {"RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK"}
_NOT_INHERITED |= {"MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "WANDB_RUN_ID", "WANDB_NAME", "HYDRA_FULL_ERROR"}
# Seconds that what outlives the first process of a tree is left to end by itself.
_AFTER = 10.0


class ProcessTree:
    """One training and all the processes that it starts: torchrun, ranks, workers that read images.

    It is a session of its own, so that Ctrl-C on a terminal reaches us alone, and it is told to stop (SIGTERM) by the
    system when we die, even of SIGKILL.

    Args:
        arguments: those of ``geexp.train``.
        processes: how many shall train it, together, under torchrun if there are several.
        log: the file that takes its output, added to; None: ours does.
        environment: what it has beyond ours.
    """

    def __init__(
        self, arguments: Sequence[str], *, processes: int, log: Path | None, environment: Mapping[str, str]
    ) -> None:
        self._id = uuid.uuid4().hex
        self._under_torchrun = processes > 1
        torchrun = [_TORCHRUN, "--standalone", "--max-restarts=0", f"--nproc-per-node={processes}", "-m"]
        self._asked: set[int] = set()
        inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        inherited = {key: value for key, value in inherited.items() if not key.startswith("TORCHELASTIC_")}
        ours = os.getpid()

        def before() -> None:
            stop_with_parent()
            if os.getppid() != ours:  # which died in between
                os._exit(1)

        output = None if log is None else log.open("ab")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *(torchrun if processes > 1 else []), "geexp.train", *arguments],
                env={**inherited, **environment, _MARK: self._id},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=before if _prctl is not None else None,
            )
        finally:
            if output is not None:
                output.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code of the first process, once it has ended and nothing is left of the tree."""
        code = self._process.poll()
        if code is not None:
            self._end_the_rest()
        return code

    def ask(self, signum: int) -> None:
        """Send a signal to those who train, to each once: to the ranks, not to torchrun, which would give them no more
        than 30 seconds. To be called again, since ranks may not have been started yet; torchrun itself is told only
        as long as it has had none. When they have ended, it is about to end as they did."""
        for process in self._trainers():
            if process.pid not in self._asked:
                self._asked.add(process.pid)
                _send(process, signum)

    def kill(self) -> None:
        for process in self._members():
            _send(process, signal.SIGKILL)
        self._process.wait()

    def _trainers(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self._process.pid)
            ranks = first.children() if self._under_torchrun else []
            return ranks or ([] if self._asked else [first])
        except psutil.NoSuchProcess:
            return []

    def _members(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._id and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):  # it has ended, or is not ours
                continue
        return found

    def _end_the_rest(self) -> None:
        """Workers notice within seconds that whom they work for is gone; what does not, is ended."""
        deadline = time.monotonic() + _AFTER
        while (left := self._members()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(left, timeout=_AFTER)  # until then they hold the run's lock, and memory of its devices


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The signals that came, in their order: noted, while entered, instead of obeyed."""
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    main = threading.current_thread() is threading.main_thread()  # others cannot have handlers
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) if main else ()
    before = {number: signal.getsignal(number) for number in wanted}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup
            signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(process: psutil.Process, signum: int) -> None:
    try:
        process.send_signal(signum)
    except (psutil.Error, OSError):  # it has ended meanwhile
        return


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """Be told to stop (SIGTERM) when the process that started this one dies, where the system can do that."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def in_a_tree() -> bool:
    """Whether this process belongs to a tree that a launcher has started."""
    return _MARK in os.environ
