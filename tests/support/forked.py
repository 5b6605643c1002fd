"""Commands without the seconds that their imports take: one process imports everything, then forks for every rank.

Each rank is a process as torchrun would start it: its environment, its standard streams, its exit code.
"""

import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import environment
from tests.support.processes import default_sigint

ROOT = Path(__file__).parents[2]


@dataclass
class Ended:
    """A process that has come to its end; ``returncode`` is the signal, negative, that killed it."""

    returncode: int
    stdout: str
    stderr: str


class Started:
    def __init__(self, server: "Forked", pids: list[int], streams: Path) -> None:
        self._server, self.pids, self._streams = server, pids, streams

    def stderr(self, rank: int = 0) -> str:
        return (self._streams / f"{rank}.err").read_text()

    def end(self, *, patience: float = 100, grace: float = 10) -> list[Ended]:
        """Wait for all ranks. When one has failed the others get some seconds, then SIGTERM, as torchrun does it."""
        codes = self._server.ask({"pids": self.pids, "patience": patience, "grace": grace})
        return [Ended(code, (self._streams / f"{rank}.out").read_text(), self.stderr(rank)) for rank, code in codes]


class Forked:
    """The tests' end of it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=default_sigint,
        )
        self._count = 0

    def close(self) -> None:
        self._process.kill()  # which has nothing to tidy up
        self._process.communicate()

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        folder: Path,
        entry: str,
        *arguments: str,
        ranks: int | None = None,
        first: tuple[str, ...] = (),
        **variables: str,
    ) -> Started:
        """``python -m geexp.<entry>`` in ``folder``, started ``ranks`` times by torchrun; None: once, by hand.

        Args:
            first: a function of ``tests.support.trouble``, and its arguments, for each process to begin with; what it
                returns is called at the end.
        """
        self._count += 1
        streams = folder / f".streams{self._count}"
        streams.mkdir()
        request = {"entry": entry, "arguments": arguments, "folder": str(folder), "streams": str(streams)}
        request |= {
            "environments": [environment(**variables, **rank) for rank in torchrun_environments(ranks)],
            "first": first,
        }
        return Started(self, self.ask(request), streams)

    def run(self, folder: Path, entry: str, *arguments: str, grace: float = 10, **how: Any) -> list[Ended]:
        return self.start(folder, entry, *arguments, **how).end(grace=grace)


def torchrun_environments(ranks: int | None) -> list[dict[str, str]]:
    """What torchrun adds to the environment of each rank."""
    if ranks is None:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everyone = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    everyone |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [everyone | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def serve() -> None:
    for name in (
        "train",
        "evaluate",
        "analyze",
        "detect",
        "training.run",
        "training.evaluation",
        "analysis.loaded_run",
        "detection.task",
    ):
        importlib.import_module(f"geexp.{name}")
    importlib.import_module("geexp.analysis.analyse")
    importlib.import_module("tests.support.trouble")
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_end(**request) if "pids" in request else _start(**request)), flush=True)


def _start(environments: list[dict[str, str]], **order: Any) -> list[int]:
    pids = []
    for rank, variables in enumerate(environments):
        pid = os.fork()
        if pid == 0:
            os._exit(_be(rank, variables, **order))
        pids.append(pid)
    return pids


def _be(
    rank: int,
    variables: dict[str, str],
    entry: str,
    arguments: list[str],
    folder: str,
    streams: str,
    first: list[str],
) -> int:
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{streams}/{rank}.{stream}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [f"geexp.{entry}", *arguments]
    code: Any = 0
    last = None
    try:
        if first:
            function, *its = first
            last = getattr(importlib.import_module("tests.support.trouble"), function)(*its)
        importlib.import_module(f"geexp.{entry}").main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    logging.shutdown()
    if last is not None:
        last()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1


def _end(pids: list[int], patience: float, grace: float) -> list[tuple[int, int]]:
    codes: dict[int, int] = {}
    sent = {signal.SIGTERM: False, signal.SIGKILL: False}
    deadline = time.monotonic() + patience
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    if codes[pid]:
                        deadline = min(deadline, time.monotonic() + grace)
        for signum, wait in ((signal.SIGTERM, 0), (signal.SIGKILL, 20)):
            if not sent[signum] and time.monotonic() > deadline + wait:
                sent[signum] = True
                for pid in pids:
                    if pid not in codes:
                        os.kill(pid, signum)
        time.sleep(0.02)
    return [(rank, codes[pid]) for rank, pid in enumerate(pids)]


if __name__ == "__main__":
    serve()
