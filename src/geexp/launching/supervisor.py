"""Process trees of training runs: start them, stop them with a checkpoint after signals, leave none behind."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil

from geexp.config.errors import PREEMPTED
from geexp.data.parallel import processors

# The environment variable that marks every process of a tree, even if its parent has died.
_MARK = "GEEXP_PROCESS_TREE"
# Variables that would turn a process into a rank, or change its run.
_NOT_INHERITED = {"RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK"}
_NOT_INHERITED |= {"MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "WANDB_RUN_ID", "WANDB_NAME", "HYDRA_FULL_ERROR"}
# Seconds that other processes of a tree have to end by themselves after the main process.
_AFTER = 10.0
POLL_EVERY = 0.2  # seconds


class ProcessTree:
    """One training run and all its processes: torchrun, ranks, data loading workers.

    The tree has its own session, so that Ctrl-C on a terminal reaches the launcher only. The system sends it SIGTERM
    if the launcher dies, even by SIGKILL.

    Args:
        arguments: arguments of ``geexp.train``.
        processes: the number of ranks; several run under torchrun.
        log: the file to which output is appended; None: the launcher's own output.
        environment: additional environment variables.
    """

    def __init__(
        self, arguments: Sequence[str], *, processes: int, log: Path | None, environment: Mapping[str, str]
    ) -> None:
        self._id = uuid.uuid4().hex
        self._under_torchrun = processes > 1
        torchrun = [
            "geexp.launching.torchrun",
            "--standalone",
            "--max-restarts=0",
            f"--nproc-per-node={processes}",
            "-m",
        ]
        self._signalled: set[int] = set()
        inherited = {
            key: value
            for key, value in os.environ.items()
            if key not in _NOT_INHERITED and not key.startswith("TORCHELASTIC_")
        }
        parent = os.getpid()

        def before() -> None:
            stop_with_parent()
            if os.getppid() != parent:  # the launcher died in between
                os._exit(1)

        with nullcontext() if log is None else log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *(torchrun if processes > 1 else []), "geexp.train", *arguments],
                env={**inherited, **environment, _MARK: self._id},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=before if _prctl is not None else None,
            )

    def poll(self) -> int | None:
        """The exit code of the main process, once all processes of the tree have ended; None before."""
        code = self._process.poll()
        if code is not None:
            self._end_the_rest()
        return code

    def stop(self, signum: int) -> None:
        """Send a signal once to each rank. Call it repeatedly, since ranks may not have started yet.

        torchrun gets the signal only while it has no ranks, since it would kill them after 30 seconds; it ends when its
        ranks have ended.
        """
        for process in self._trainers():
            if process.pid not in self._signalled:
                self._signalled.add(process.pid)
                _send(process, signum)

    def kill(self) -> None:
        for process in self._members():
            _send(process, signal.SIGKILL)
        self._process.wait()

    def _trainers(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self._process.pid)
            ranks = first.children() if self._under_torchrun else []
            return ranks or ([] if self._signalled else [first])
        except psutil.NoSuchProcess:
            return []

    def _members(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # it has ended, or belongs to another user
                if process.environ().get(_MARK) == self._id and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _end_the_rest(self) -> None:
        """Kill the processes that do not end within seconds after the main process."""
        deadline = time.monotonic() + _AFTER
        while (left := self._members()) and time.monotonic() < deadline:
            time.sleep(POLL_EVERY)
        for process in left:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(left, timeout=_AFTER)  # until then they hold the run's lock and device memory


class Supervisor:
    """Context manager that runs process trees in parallel and stops all of them after a signal.

    Inside the context SIGINT, SIGTERM and SIGUSR1 are only recorded; ``signal`` is the first one. On exit all remaining
    processes are ended.

    Args:
        grace: seconds that runs have to write their checkpoints after a signal.
    """

    def __init__(self, *, grace: float) -> None:
        self.grace = grace
        self._trees: list[ProcessTree] = []
        self._received: list[int] = []
        self._before: dict[int, Any] = {}
        self._deadline: float | None = None

    def __enter__(self) -> "Supervisor":
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[signum] = signal.getsignal(signum)
                if self._before[signum] != signal.SIG_IGN:  # as under nohup
                    signal.signal(signum, lambda signum, frame: self._received.append(signum))
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for tree in self._trees:
                tree.kill()
        finally:
            for signum, handler in self._before.items():
                signal.signal(signum, handler)

    @property
    def signal(self) -> int | None:
        return self._received[0] if self._received else None

    def start(self, arguments: Sequence[str], **settings: Any) -> ProcessTree:
        """Start a ``ProcessTree``, with its arguments."""
        self._trees.append(ProcessTree(arguments, **settings))
        return self._trees[-1]

    def poll(self, tree: ProcessTree) -> int | None:
        """The exit code of a tree that has ended completely; None before.

        Also forwards a received signal to the tree, and kills it after ``grace`` seconds or a second Ctrl-C.
        """
        if self.signal is not None:
            now = time.monotonic()
            self._deadline = self._deadline or now + self.grace
            tree.stop(self.signal)
            if now > self._deadline or signal.SIGINT in self._received[1:]:
                tree.kill()
        code = tree.poll()
        if code is not None:
            self._trees.remove(tree)
        return code

    def end_as_signalled(self) -> None:
        """Raise ``KeyboardInterrupt`` after Ctrl-C, ``SystemExit`` with a preempted run's code after other signals."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            sys.exit(PREEMPTED)


def thread_limit(processes: int) -> dict[str, str]:
    """Environment variables that give each of this many processes an equal share of the machine's CPUs.

    They limit the threads of torch and of its compiler. Those that are set already are kept.
    """
    if processes == 1:
        return {}
    share = str(max(1, processors() // processes))
    return {name: share for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS") if name not in os.environ}


def train_in_ranks(arguments: Sequence[str], *, devices: int, grace: float) -> None:
    """Train a single run on several devices of this machine, with one process per device.

    ``arguments`` are the arguments of ``geexp.train``.

    Raises:
        SystemExit: with the exit code of the processes, unless it is 0.
        KeyboardInterrupt, SystemExit: if they fail after a signal; see ``Supervisor.end_as_signalled``.
    """
    with Supervisor(grace=grace) as supervisor:
        tree = supervisor.start(arguments, processes=devices, log=None, environment=thread_limit(devices))
        announced = False
        while (code := supervisor.poll(tree)) is None:
            if supervisor.signal is not None and not announced:
                announced = True  # ranks that wait for one another run no handler yet
                print(
                    f"\n{signal.Signals(supervisor.signal).name}: {devices} processes stop with a checkpoint, within "
                    f"{grace:g} s; press Ctrl-C again to kill them",
                    file=sys.stderr,
                )
            time.sleep(POLL_EVERY)
    if code:
        supervisor.end_as_signalled()
        sys.exit(code if code > 0 else 128 - code)


def _send(process: psutil.Process, signum: int) -> None:
    with suppress(psutil.Error, OSError):  # it has ended meanwhile
        process.send_signal(signum)


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """Ask the system to send SIGTERM to this process when its parent dies, if supported."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def in_a_tree() -> bool:
    """Whether this process belongs to a launcher's process tree."""
    return _MARK in os.environ
