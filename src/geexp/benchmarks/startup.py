"""``what=startup``: what the entry points take to show their help and configuration, and to reach the first step.

Every one is a process of its own; the unit is one that imports torch and ends.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from geexp.benchmarks.progress import progress
from geexp.benchmarks.rows import Column, Comparison, Row, Target
from geexp.config.benchmark import StartupSettings

_UNIT, _CASE = "import torch", "start-up"
# Runs a module as python -m does, and says on standard error how many modules that took.
_COUNT = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit:
    pass
print(len(sys.modules), file=sys.stderr)
"""
_REMARKS = [
    "processor: user and system time of the process; / torch: over that of python -c 'import torch' in the same round "
    "(low-high over the rounds). first step: python -m geexp.train with ResNet-8, up to the end of its first step.",
]


@dataclass(frozen=True)
class _Started:
    processor: float
    wall: float
    modules: int | None = None


def benchmark_startup(settings: StartupSettings) -> Comparison:
    """Start every entry point ``rounds`` times, after once that does not count."""
    rounds = settings.rounds
    scripts = (script for script in entry_points(group="console_scripts") if script.name.startswith("geexp-"))
    entries = sorted(script.module.removeprefix("geexp.") for script in scripts)
    shown = [(entry, flag) for entry in entries for flag in ("--help", "--cfg=job")]
    started: dict[str, list[_Started]] = {}
    modules: dict[str, int] = {}
    with (
        tempfile.TemporaryDirectory(prefix="geexp-benchmark-") as folder,
        progress("starting", (rounds + 1) * (len(shown) + 2)) as advance,
    ):
        for round_ in range(rounds + 1):
            turn = {_UNIT: _start(["-c", "import torch"], Path(folder))}
            advance()
            for entry, flag in shown:
                name = f"{entry} {flag.replace('=', ' ')}"
                if round_ == 0:  # which also reads the files for the first time
                    modules[name] = _modules(f"geexp.{entry}", flag, Path(folder))
                else:
                    turn[name] = _start(["-m", f"geexp.{entry}", flag], Path(folder))
                advance()
            turn["first step"] = _first_step(Path(folder) / f"round{round_}")
            advance()
            if round_ > 0:
                for name, one in turn.items():
                    started.setdefault(name, []).append(one)
        modules[_UNIT] = _torchs_modules(Path(folder))
    rows = [
        Row(
            _CASE,
            name,
            {"processor": [one.processor for one in ones], "wall": [one.wall for one in ones]},
            {"modules": modules.get(name, ones[-1].modules)},
        )
        for name, ones in started.items()
    ]
    columns = [
        Column("processor s", "processor"),
        Column("/ torch", "processor", against=(_UNIT,)),
        Column("wall s", "wall"),
        Column("/ torch", "wall", against=(_UNIT,)),
        Column("modules", "modules", digits=0),
    ]
    return Comparison("Start-up", columns, rows, _TARGETS, _REMARKS)


# Nothing is demanded in figures; tests hold the entry points to importing neither torch nor anything else as heavy.
_TARGETS: list[Target] = []


def _start(arguments: Sequence[str], folder: Path) -> _Started:
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return _Started(processor, wall)


def _modules(module: str, flag: str, folder: Path) -> int:
    command = [sys.executable, "-c", _COUNT, module, flag]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return int(done.stderr.split()[-1])


def _torchs_modules(folder: Path) -> int:
    command = [sys.executable, "-c", "import sys, torch; print(len(sys.modules))"]
    return int(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


def _first_step(folder: Path) -> _Started:
    folder.mkdir()
    noted = folder / "first_step.json"
    arguments = [
        "model=resnet8",
        "ge=theta",
        "debug=one_batch",
        "logger=none",
        "trainer=cpu",
        f"outputs={folder}",
        "+callbacks.first_step._target_=geexp.benchmarks.first_step.FirstStep",
        f"+callbacks.first_step.path={noted}",
    ]
    start = time.time()
    command = [sys.executable, "-m", "geexp.train", *arguments]
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    found = json.loads(noted.read_text(encoding="utf-8"))
    return _Started(found["processor"], found["at"] - start, found["modules"])
