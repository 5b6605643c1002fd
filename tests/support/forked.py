"""Commands without the seconds that their imports take: a server that has imported everything forks each process.

Each rank is a process as torchrun would start it: its environment, its standard streams, its exit code.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.conftest import environment

ENTRIES = ("train", "evaluate", "analyze", "detect")
# What the entry points import only when they need it.
LATER = ("training.run", "training.evaluation", "analysis.loaded_run", "analysis.analyse", "detection.task")


@dataclass
class Ended:
    """A process that has come to its end; ``returncode`` is the signal, negative, that killed it."""

    returncode: int
    stdout: str
    stderr: str


class Started:
    def __init__(self, processes: list[ForkServerProcess], streams: Path) -> None:
        self._processes, self._streams = processes, streams

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def end(self, *, patience: float = 100, grace: float = 10) -> list[Ended]:
        """Wait for all ranks. When one has failed, the others get ``grace`` seconds, then SIGTERM, as from torchrun."""
        deadline = time.monotonic() + patience
        while any(process.is_alive() for process in self._processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in self._processes):
                deadline = min(deadline, time.monotonic() + grace)
            time.sleep(0.02)
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(20)
        self.kill()
        return [
            Ended(process.exitcode, self._stream(rank, "out"), self._stream(rank, "err"))
            for rank, process in enumerate(self._processes)
        ]

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def _stream(self, rank: int, name: str) -> str:
        return (self._streams / f"{rank}.{name}").read_text()


class Forked:
    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        entries = [f"geexp.{name}" for name in (*ENTRIES, *LATER)]
        self._context.set_forkserver_preload([*entries, "tests.support.trouble", __name__])
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment().items():
                patch.setenv(name, value)
            forkserver.ensure_running()
        self._started: list[Started] = []

    def start(self, folder: Path, entry: str, *arguments: str, ranks: int | None = None, **variables: str) -> Started:
        """``python -m geexp.<entry>`` in ``folder``, started ``ranks`` times by torchrun; None: once, by hand."""
        streams = folder / f".streams{len(self._started)}"
        streams.mkdir()
        processes = []
        for rank, torchruns in enumerate(torchrun_environments(ranks)):
            variables_of_rank = environment(**variables, **torchruns)
            arguments_of_rank = (entry, arguments, folder, streams / str(rank), variables_of_rank)
            process = self._context.Process(target=_command, args=arguments_of_rank)
            process.start()
            processes.append(process)
        self._started.append(Started(processes, streams))
        return self._started[-1]

    def run(self, folder: Path, entry: str, *arguments: str, grace: float = 10, **how: Any) -> list[Ended]:
        return self.start(folder, entry, *arguments, **how).end(grace=grace)

    def close(self) -> None:
        for started in self._started:
            started.kill()


def torchrun_environments(ranks: int | None) -> list[dict[str, str]]:
    """What torchrun adds to the environment of each rank."""
    if ranks is None:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _command(entry: str, arguments: tuple[str, ...], folder: Path, stream: Path, variables: dict[str, str]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{stream}.{name}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:0] = variables["PYTHONPATH"].split(os.pathsep)
    sys.argv = [f"geexp.{entry}", *arguments]
    try:
        importlib.import_module(f"geexp.{entry}").main()
    finally:
        if dist.is_initialized():  # NCCL's process group would warn so
            print("destroy_process_group() was not called before program exit", file=sys.stderr)
