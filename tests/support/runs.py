"""Short trainings and what they leave in their folders."""

import json
from pathlib import Path
from typing import Any

import torch

from geexp.runs.run import Run
from tests.support import trouble as faults

# Two epochs of six steps, a checkpoint after each epoch and after every fourth step.
SETTINGS = ["trainer=cpu", "ge=none", "logger=none", "optim.batch_size=32", "schedule.epochs=2"]
SETTINGS += ["trainer.limit_train_batches=6", "trainer.limit_val_batches=2", "trainer.checkpoint_every_n_steps=4"]


def trouble(kind: str, /, **settings: Any) -> str:
    """The override that adds a callback of ``tests.support.trouble``."""
    inside = "".join(f", {key}: {value}" for key, value in settings.items())
    return f"+callbacks.trouble={{_target_: {faults.__name__}.{kind}{inside}}}"


def only_run(folder: Path) -> Path:
    (run,) = (path.parent for path in folder.glob("outputs/**/config_tree.txt"))
    return run


def history(run: Path) -> list[dict]:
    """The rows without times."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "time")} for row in rows]


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint(run)["state_dict"]


def same_weights(run: Path, reference: Path) -> None:
    ours, theirs = weights(run), weights(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def same_end(run: Path, reference: Path) -> None:
    """The run is complete, and only its times tell it from the reference."""
    assert Run(run).status.state == "complete"
    assert history(run) == history(reference)
    same_weights(run, reference)
    assert not [*run.rglob(".writing*")]
