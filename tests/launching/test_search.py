"""A hyperparameter search with Optuna: its trials are runs like all others."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")

SEARCH = ["-m", "hydra/sweeper=optuna", "debug=one_batch", "ge=none", "logger=none", "trainer=cpu"]


def errors(folder: Path) -> dict[float, float]:
    """The error of every finished run by its learning rate."""
    results = [json.loads(path.read_text()) for path in folder.glob("outputs/**/result.json")]
    return {one["config"]["optim"]["lr"]: one["metrics"]["last"]["val/top1_error"] for one in results}


def best(folder: Path) -> dict[str, Any]:
    """The best trial's ``best_params`` and ``best_value``."""
    return yaml.safe_load((folder / "outputs/optimization_results.yaml").read_text())


def test_three_trials_and_a_fourth(forked, tmp_path):
    """The first three in this process; then the same search with one more, which trains only that one."""
    command = [*SEARCH, "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1", "optim.lr=interval(0.01,0.1)"]
    (ended,) = forked.run(tmp_path, "train", *command, "hydra.sweeper.n_trials=3", "launcher=inline")
    assert ended.returncode == 0, ended.stderr
    three = errors(tmp_path)
    assert len(three) == 3
    assert all(0.01 <= lr <= 0.1 and f"optim.lr={lr}: done" in ended.stderr for lr in three)
    found = best(tmp_path)
    assert three[found["best_params"]["optim.lr"]] == found["best_value"] == min(three.values())
    (ended,) = forked.run(tmp_path, "train", *command, "hydra.sweeper.n_trials=4", "launcher=processes")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("1 training: 1 done") == 3
    assert errors(tmp_path).keys() > three.keys()
    assert len(errors(tmp_path)) == 4


def test_a_failed_trial(forked, tmp_path):
    """An SE module with fewer hidden units than one is an error that only the training finds."""
    # Not the grid sampler, which shuffles its trials: the plugin raises an error of its own if the last one fails.
    sampler = ["hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.n_trials=2"]
    command = [*SEARCH, *sampler, "ge=se", "launcher=inline", "ge.reduction=choice(4,1000)"]
    (tolerant,) = forked.run(tmp_path, "train", *command, "hydra.sweeper.max_failure_rate=0.5")
    assert tolerant.returncode == 0, tolerant.stderr
    assert best(tmp_path)["best_params"] == {"ge.reduction": 4}
    (strict,) = forked.run(tmp_path, "train", *command)
    assert strict.returncode == 1
    assert "Traceback" not in strict.stderr
    assert "ge.reduction=1000: failed" in strict.stderr


def test_trials_cannot_be_listed_in_advance(forked, tmp_path):
    (ended,) = forked.run(tmp_path, "train", *SEARCH, "seed=choice(1,2)", "dry_run=true")
    assert ended.returncode == 2
    assert "dry_run" in ended.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("outputs/*"))
