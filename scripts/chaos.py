"""Kill runs at random moments, resume them, and compare the results with those of uninterrupted runs.

    python scripts/chaos.py [--runs 20] [--ranks 1] [--seed 0] [--jobs 2] [--out FILE]

Each run is killed two to four times with SIGKILL, about half of the times while it writes a checkpoint, otherwise at a
random moment. With one rank the whole process group is killed; with two ranks one is killed, and torchrun must stop the
other. Then the same command is started again, with other numbers of workers and of steps between checkpoints. In the
end every value in the checkpoints, every row of history.jsonl except times, and the loss of every step, including
repeated ones, must equal those of the uninterrupted run, bit for bit. The exit code is 1 if anything differs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

COMMON = (
    "trainer=cpu trainer.deterministic=true trainer.limit_val_batches=4 trainer.checkpoint_every_n_steps={every} "
    "trainer.devices={ranks} hydra.run.dir={folder} logger=none +callbacks.witness._target_=chaos.Witness "
)
WITH_WORKERS = " feed=reference feed.workers={workers}"
CONFIGURATIONS = {
    "plateau, EMA": "schedule=plateau schedule.epochs=6 schedule.patience=0 schedule.threshold=0.3 "
    "schedule.reductions=2 callbacks=ema trainer.limit_train_batches=20",
    "iterations": "schedule=preact_cifar schedule.iterations=63 schedule.warmup=8 schedule.milestones=[30,50] "
    "trainer.limit_train_batches=25" + WITH_WORKERS,
    "cosine, EMA, accumulate 2": "schedule.epochs=3 callbacks=ema trainer.accumulate=2 trainer.limit_train_batches=46",
    "steps, accumulate 2": "schedule=wrn_cifar schedule.epochs=3 schedule.milestones=[1,2] optim.nesterov=true "
    "trainer.accumulate=2 trainer.limit_train_batches=42" + WITH_WORKERS,
}
PATIENCE = 300.0  # timeout in seconds; far more than any wait should take


class Witness(pl.Callback):
    """Records every step with its exact loss in a file that survives a SIGKILL."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.file = (Path(trainer.default_root_dir) / "steps.txt").open("a", buffering=1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.file.write(f"{trainer.global_step} {outputs['loss'].item().hex()}\n")


@dataclass
class Training:
    """A run of geexp in ``folder``, which is started as often as necessary, and its results."""

    folder: Path
    configuration: str
    ranks: int
    kills: list[str] = field(default_factory=list)
    starts: int = 0
    repeated: int = 0
    differences: dict[str, str | None] = field(default_factory=dict)
    seconds: float = 0.0

    @contextmanager
    def started(self, *, every: int | str, workers: int) -> Iterator[subprocess.Popen[bytes]]:
        """Context manager with the running command; all its processes are ended afterwards."""
        launcher = f"torch.distributed.run --standalone --nproc-per-node={self.ranks} -m " if self.ranks > 1 else ""
        settings = COMMON + CONFIGURATIONS[self.configuration]
        settings = settings.format(every=every, workers=workers, ranks=self.ranks, folder=self.folder)
        command = [sys.executable, "-m", *f"{launcher}geexp.train {settings}".split()]
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self.folder.mkdir(exist_ok=True)
        self.starts += 1
        with (self.folder / "output.txt").open("ab") as output:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            process = subprocess.Popen(command, env=environment, start_new_session=True, **options)
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                for left in family(process):
                    left.kill()
            process.wait()

    def finish(self, *, every: int | str = "null", workers: int = 0) -> None:
        with self.started(every=every, workers=workers) as process:
            process.wait(PATIENCE)
            self.require(process.returncode == 0, f"exit code {process.returncode}")
        print(f"{self.folder.name} ({self.configuration}): done in {len(self.steps())} steps", file=sys.stderr)

    def kill(self, chance: random.Random, target: int) -> bool:
        """Start the run and kill it some time after step ``target``; one in ten times without waiting for that step.

        Returns False if the run finished first.
        """
        before = len(self.steps())
        kind = chance.choices(("writing", "any", "start"), weights=(5, 4, 1 if before else 0))[0]
        with self.started(every=chance.randint(3, 7), workers=chance.randint(0, 2)) as process:
            if kind == "start":
                time.sleep(chance.uniform(0.5, 6))
            else:
                wait_while(process, lambda: not any(step >= target for step, _ in self.steps()[before:]))
            everyone = family(process)
            if kind == "writing":
                wait_while(process, lambda: not self.half_written(), pause=0.0002)
            time.sleep(chance.uniform(0, {"writing": 0.008, "any": 0.5, "start": 0}[kind]))
            if process.poll() is not None:
                self.require(process.returncode == 0, f"ended by itself with exit code {process.returncode}")
                return False
            ranks = [one for one in everyone if self.ranks > 1 and one.is_running() and one.ppid() == process.pid]
            if ranks:
                chance.choice(ranks).kill()
                self.require(process.wait(PATIENCE) != 0, "torchrun reported success although a rank was killed")
            else:
                os.killpg(process.pid, SIGKILL)
                process.wait()
            self.require(not psutil.wait_procs(everyone, timeout=30)[1], "a process survived the kill")
        made = self.steps()[before:]
        self.kills.append(f"{made[-1][0]}{'*' * self.half_written()}" if made else "start")
        return True

    def steps(self) -> list[tuple[int, str]]:
        """All recorded steps with their losses, in the order of execution."""
        path = self.folder / "steps.txt"
        made = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(step), loss) for step, loss in made]

    def half_written(self) -> bool:
        return any((self.folder / "checkpoints").glob(".writing-last.ckpt-*"))

    def contents(self) -> dict[str, Any]:
        """The content to compare."""
        files = {name: self.folder / f"checkpoints/{name}.ckpt" for name in ("best", "last")}
        trees = {name: torch.load(file, weights_only=True) for name, file in files.items()}
        for tree in trees.values():
            del tree["geexp"]["config"], tree["geexp"]["run_id"], tree["callbacks"]["History"]  # workers; a name; clock
        rows = [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]
        history = [{key: value for key, value in row.items() if key not in ("seconds", "time")} for row in rows]
        return {"losses": set(self.steps()), "weights": trees, "history": history}

    def require(self, condition: bool, complaint: str) -> None:
        if not condition:
            output = (self.folder / "output.txt").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{self.folder.name} ({self.configuration}): {complaint}\n…{output}")


def interrupt(training: Training, reference: Training, chance: random.Random) -> None:
    begin, last = time.monotonic(), len(reference.steps())
    for target in sorted(chance.sample(range(1, last + 1), chance.randint(2, 4))):
        if not training.kill(chance, target):
            break
    else:
        training.finish(every=chance.randint(3, 7), workers=chance.randint(0, 2))
    ours, theirs = training.contents(), reference.contents()
    training.differences = {part: difference(ours[part], theirs[part]) for part in theirs}
    training.repeated, training.seconds = len(training.steps()) - last, time.monotonic() - begin
    for part, where in training.differences.items():
        if where:
            print(f"{training.folder.name} ({training.configuration}): {part} differ at {where}", file=sys.stderr)


def difference(ours: Any, theirs: Any, where: str = "") -> str | None:
    """A description of the first difference between two trees of plain values and tensors; None if equal."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return next(filter(None, (difference(ours[key], theirs[key], f"{where}/{key}") for key in ours)), None)
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    else:
        same = ours == theirs
    return None if same else f"{where}: {str(ours)[:200]}, not {str(theirs)[:200]}"


def wait_while(process: subprocess.Popen[bytes], condition: Callable[[], bool], pause: float = 0.01) -> None:
    """Wait while the condition holds and the process runs."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no progress for {PATIENCE:.0f} seconds")
        time.sleep(pause)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def report(runs: list[Training], title: str) -> str:
    """Print the table, and return the printed text."""
    table = Table(title=title, caption="kills: the last step before each kill; * while a checkpoint was written")
    for heading in ("run", "configuration", "kills", "starts", "repeated", "losses", "weights", "history", "seconds"):
        table.add_column(heading, justify="left" if heading in ("configuration", "kills") else "right")
    for number, one in enumerate(runs, 1):
        verdicts = ["DIFFER" if where else "equal" for where in one.differences.values()]
        figures = (str(one.starts), str(one.repeated), *verdicts, f"{one.seconds:.0f}")
        table.add_row(str(number), one.configuration, ", ".join(one.kills), *figures)
    kills = [kill for one in runs for kill in one.kills]
    equal = sum(not any(one.differences.values()) for one in runs)
    console = Console(record=True, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        f"{len(kills)} kills, {sum(kill.endswith('*') for kill in kills)} of them while a checkpoint was written; "
        f"{sum(one.repeated for one in runs)} steps made again; {equal} of {len(runs)} runs equal to the "
        "uninterrupted one."
    )
    return console.export_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    names = list(CONFIGURATIONS)[: options.runs]
    with tempfile.TemporaryDirectory(prefix="chaos-") as place, ThreadPoolExecutor(options.jobs) as pool:
        wholes = [Training(Path(place, f"whole{i}"), name, options.ranks) for i, name in enumerate(names)]
        list(pool.map(Training.finish, wholes))
        references = [wholes[number % len(wholes)] for number in range(options.runs)]
        runs = [Training(Path(place, f"run{n}"), one.configuration, one.ranks) for n, one in enumerate(references, 1)]
        chances = [random.Random(f"{options.seed} {number}") for number in range(options.runs)]
        list(pool.map(interrupt, runs, references, chances))
    text = report(runs, f"ranks: {options.ranks}, seed {options.seed}, torch {torch.__version__}")
    if options.out:
        options.out.write_text(text)
    sys.exit(any(any(one.differences.values()) for one in runs))


if __name__ == "__main__":
    main()
