"""Sweeps and runs as a user starts them, all their processes, and a clean-up that leaves none behind."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from geexp.runs.run import Run
from tests.conftest import environment
from tests.support.processes import PATIENCE, default_sigint, until

ROOT = Path(__file__).parents[2]
AGENT = "geexp.launching.torchrun"
_MARK = "GEEXP_TEST"

# Three epochs of eight steps.
SMALL = ["data=fashion_mnist_mini", "model=resnet8", "trainer.accelerator=cpu", "optim.batch_size=32"]
SMALL += ["trainer.limit_train_batches=8", "trainer.limit_val_batches=2", "schedule.epochs=3", "logger=none"]


class Command:
    """``python -m geexp.train <arguments>`` in ``folder``, a session of its own."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.folder, self._mark = folder, uuid.uuid4().hex
        self._streams = [folder / f".{self._mark}.{name}" for name in ("out", "err")]
        with self._streams[0].open("wb") as out, self._streams[1].open("wb") as err:
            self.process = psutil.Popen(
                [sys.executable, "-m", "geexp.train", *arguments],
                cwd=folder,
                env=environment(PYTHONPATH=str(ROOT), **{_MARK: self._mark}, **variables),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_default_signals,
            )

    @property
    def stdout(self) -> str:
        return self._streams[0].read_text()

    @property
    def stderr(self) -> str:
        return self._streams[1].read_text()

    def processes(self) -> list[psutil.Process]:
        """All that live of what it has started, itself included, whoever their parents are now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def trainings(self) -> list[psutil.Process]:
        """The processes that train, one per device; and those that feed them, if the feed has processes."""
        own = _words(self.process)  # also those of a child that is not yet what it shall be
        others = [(p, _words(p)) for p in self.processes()]
        return [p for p, words in others if "geexp.train" in words and AGENT not in words and words != own]

    def agents(self) -> list[psutil.Process]:
        """The processes that start the ranks of one job each."""
        return [p for p in self.processes() if AGENT in _words(p)]

    def end(self, patience: float = PATIENCE) -> int:
        """Its exit code."""
        return self.process.wait(patience)

    def has_left_nothing(self, patience: float = 0.0) -> bool:
        deadline = time.monotonic() + patience
        while left := self.processes():
            if time.monotonic() > deadline:
                print("left behind:", [(p.pid, " ".join(_words(p))) for p in left])
                return False
            time.sleep(0.1)
        return True

    def clean_up(self) -> None:
        while left := self.processes():
            for process in left:
                process.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _default_signals() -> None:
    default_sigint()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores


class Strings:
    """What moves the puppets: see ``probes.Puppet``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.argument = f"+callbacks.puppet={{_target_: tests.support.probes.Puppet, folder: '{folder}'}}"

    def tell(self, *ranks: str, do: str = "wait") -> None:
        for rank in ranks:
            (self.folder / f"{rank}.do").write_text(do)

    def where(self, *ranks: str) -> list[int]:
        """The processes of these ranks, once they all are at their point."""
        return [json.loads(until(lambda rank=rank: _text(self.folder / f"{rank}.at"))) for rank in ranks]

    def release(self) -> None:
        for name in self.folder.glob("*.do"):
            name.unlink()

    def forget(self) -> None:
        for name in self.folder.iterdir():
            name.unlink()


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def runs(folder: Path) -> dict[str, Path]:
    """``{"theta-2": folder of the run, …}``: variant and number of devices of all that have begun to train."""
    found = {}
    for path in folder.glob("outputs/**/config_tree.txt"):
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        found[f"{config['ge']['variant']}-{config['trainer']['devices']}"] = path.parent
    return found


def finished(folder: Path) -> dict[str, int]:
    """When the runs that are finished were, by name."""
    return {name: (run / "result.json").stat().st_mtime_ns for name, run in runs(folder).items() if Run(run).result}


def send(pids: Sequence[int], signum: int = signal.SIGKILL) -> None:
    for pid in pids:
        os.kill(pid, signum)
