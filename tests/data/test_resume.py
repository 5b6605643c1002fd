"""Killed and resumed, a run sees the batches that it would have seen: byte for byte, on every rank."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.support.photos import photo, write_classes

ROOT = Path(__file__).parents[2]

# How a run ends: see killed_run.py. Twelve steps an epoch, a checkpoint every five and after each epoch's validation.
IN_THE_MIDDLE = "step:8"  # of an epoch, after a checkpoint in the middle
ON_THE_LAST_BATCH = "step:12"  # the checkpoint is from before
BETWEEN_EPOCHS = "epoch:2"  # after a resumed one
AFTER_A_WHOLE_EPOCH = "epoch:3"
# With a checkpoint taken on the last batch itself, as callbacks of users may. (After a second interruption Lightning
# 2.6 repeats an epoch in this case; our own checkpoint is never taken there.)
SAVED_ON_THE_LAST_BATCH = "saved:24"


@pytest.fixture
def images(tmp_path) -> Path:
    for split, number in (("train", 16), ("val", 3)):
        folder = tmp_path / "images" / split
        write_classes(folder, "abc", number, lambda label, i: photo(100 * label + i, (60, 48 + label)))
    return tmp_path / "images"


def launch(images: Path, run: Path, world: int, feed: dict, end: str) -> None:
    script = [str(Path(__file__).with_name("killed_run.py")), str(images), str(run), str(world), json.dumps(feed), end]
    launcher = [] if world == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    run.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *launcher, *script],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode == 0) == (end == "whole"), done.stderr


def seen(run: Path, rank: int) -> dict[int, set[str]]:
    """What the rank was given at each step, however often it made that step."""
    steps: dict[int, set[str]] = {}
    for line in (run / f"rank{rank}.txt").read_text().splitlines():
        step, rest = line.split(" ", 1)
        steps.setdefault(int(step), set()).add(rest)
    return steps


def check(images: Path, tmp_path: Path, world: int, feeds: list[dict], *kills: list[str]) -> None:
    """Runs that are killed as listed and then go on to the end, against one that is not killed."""
    launch(images, tmp_path / "whole", world, feeds[0], "whole")
    for number, ends in enumerate(kills):
        for restart, end in enumerate([*ends, "whole"]):
            launch(images, tmp_path / f"killed{number}", world, feeds[restart % len(feeds)], end)
        for rank in range(world):
            uninterrupted, interrupted = seen(tmp_path / "whole", rank), seen(tmp_path / f"killed{number}", rank)
            assert sorted(uninterrupted) == list(range(48))
            assert all(len(batch) == 1 for batch in uninterrupted.values())
            assert len({next(iter(batch)) for batch in uninterrupted.values()}) == 48
            assert interrupted == uninterrupted


THREADS = [{"name": "folder", "engine": "threads", "workers": n} for n in (0, 2)]
WORKERS = {"name": "folder", "engine": "workers", "workers": 2}


@pytest.mark.slow
def test_one_process_whatever_makes_the_batches(images, tmp_path):
    """The engine and the number of workers change at every restart."""
    check(images, tmp_path, 1, [*THREADS, WORKERS], [ON_THE_LAST_BATCH, BETWEEN_EPOCHS])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    "feed",
    [*THREADS, WORKERS, *({"name": "reference", "engine": "workers", "workers": n} for n in (0, 2))],
    ids=lambda f: f"{f['name']}-{f['engine']}-{f['workers']}",
)
def test_every_feed_and_engine(images, tmp_path, world, feed):
    ours = [IN_THE_MIDDLE, ON_THE_LAST_BATCH, BETWEEN_EPOCHS, AFTER_A_WHOLE_EPOCH]
    check(images, tmp_path, world, [feed], ours, [SAVED_ON_THE_LAST_BATCH])
