"""What W&B gets of a run, read back from the disk, and what is made of it: a dashboard, and runs for the report."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb

from geexp.config.errors import ConfigError, DataError, DivergedError
from geexp.report.dashboard import make_dashboard, write_specification
from geexp.report.measured import Runs
from geexp.report.runs import read_runs
from geexp.report.wandb_runs import read_wandb
from geexp.runs.identity import flat, run_tags
from geexp.runs.run import Run
from geexp.training.classification import CONFUSED_PAIRS, Confusion
from geexp.training.loggers import finish_wandb, make_loggers
from geexp.training.run import train
from geexp.training.wandb_content import charts, summary, usual_mode
from tests.conftest import python
from tests.support.configuration import job, train_config
from tests.support.runs import SETTINGS, trouble
from tests.support.wandb_files import Logged, dashboard_grids, dashboard_metrics, logged, table

VARIANTS = {"none": "baseline", "se-global": "SE", "theta-global": "GE-θ"}
TYPED = ["launcher=inline", "ge=none,se,theta", "debug=one_batch", "logger=wandb", "logger.group=mine", "seed=3"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """A sweep of three jobs, as it is typed by a user without a login: offline, without a prompt."""
    folder = tmp_path_factory.mktemp("sweep")
    done = python("-m", "geexp.train", "-m", *TYPED, "optim.lr=0.2", cwd=folder, NETRC=str(folder / "none"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("to upload later: wandb sync ") == 3
    return folder


@pytest.fixture(scope="module")
def jobs(sweep) -> dict[str, tuple[Path, Logged]]:
    """The run folder and what was logged, by variant."""
    found = {}
    for path in sweep.glob("outputs/**/result.json"):
        (start,) = logged(path.parent)
        found[path.parts[-4]] = (path.parent, start)
    return found


def test_a_sweep_is_a_group_of_one_run_a_job(jobs):
    assert jobs.keys() == VARIANTS.keys()
    assert len({start.id for _, start in jobs.values()}) == 3
    for variant, (_, start) in jobs.items():
        assert start.group == "mine"
        network = f"ResNet-8 {VARIANTS[variant]}"
        assert start.name == f"{network}, fashion_mnist_mini, demo, debug=one_batch, optim.lr=0.2, seed 3"
        assert start.tags == [variant.removesuffix("-global"), "fashion_mnist_mini"]
        assert start.finished


def test_the_configuration_is_flat_and_whole(jobs):
    for folder, start in jobs.values():
        config = dict(start.config)
        assert f"{config.pop('label')}, seed 3" == start.name
        assert start.name.startswith(config.pop("network"))
        assert config == flat(json.loads((folder / "result.json").read_text())["config"])
        assert config["optim.lr"] == 0.2


def test_the_epoch_is_the_axis_and_the_summary_has_the_best_error(jobs):
    for folder, start in jobs.values():
        result = json.loads((folder / "result.json").read_text())
        (row,) = (json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines())
        assert {key: start.axes[key] for key in ("train/*", "val/*", "lr", "val/top1_error")} == dict.fromkeys(
            ("train/*", "val/*", "lr", "val/top1_error"), "epoch"
        )
        (epoch,) = start.epochs
        assert {key: epoch[key] for key in row if key != "step"} == {k: v for k, v in row.items() if k != "step"}
        assert epoch["trainer/global_step"] == row["step"] == 1
        summary = start.summary
        assert summary["val/top1_error"]["min"] == summary["best/top1_error"] == row["val/top1_error"]
        assert summary["last/top1_error"] == result["metrics"]["last"]["val/top1_error"]
        assert (summary["params"], summary["macs"]) == (result["complexity"]["params"], result["complexity"]["macs"])
        assert summary["result"] == {k: v for k, v in result.items() if k not in ("config", "identity")}


def test_curves_and_confusion_are_logged_at_the_end(jobs):
    for folder, start in jobs.values():
        charted = {"curves/history", "curves/top1_error_table", "confusion/pairs", "confusion/matrix_table"}
        assert charted <= start.history[-1].keys()
        result = json.loads((folder / "result.json").read_text())
        matrix = table(folder, "confusion/matrix")
        last = result["metrics"]["last"]
        assert sum(n for *_, n in matrix) == last["val/images"] == 64
        assert sum(n for actual, predicted, n in matrix if actual != predicted) == last["val/top1_wrong"]
        assert list(folder.glob("wandb/offline-run-*/artifacts/staging/*"))  # not in the user's home


@pytest.mark.parametrize("name", ["mine", "table2", "figure2", "tables"])
def test_a_dashboard_asks_for_what_runs_log(jobs, tmp_path, name):
    path = tmp_path / "specification.json"
    write_specification(make_dashboard(name, entity="", project="geexp", runs=Runs([])), path)
    specification = json.loads(path.read_text())
    asked = set(dashboard_metrics(specification["spec"]))
    assert len(asked) >= 8
    for _, start in jobs.values():
        known = {"history": set(start.epochs[0]), "summary": set(start.summary), "config": set(start.config)}
        assert not [(kind, key) for kind, key in asked if key not in known[kind]]
    filters = [one for grid in dashboard_grids(specification) for one in grid["runSets"][0]["filters"]["filters"]]
    assert {one["key"]["name"] for one in filters} == ({"group"} if name == "mine" else {"group", "tags"})


def test_a_tables_runs_are_those_of_every_preset_that_trains_its_rows():
    """A training that stands in several tables may have run under any of their presets."""
    runs_of_table, others = make_dashboard("table2", entity="", project="geexp", runs=Runs([])).blocks[2::2]
    tags = str(runs_of_table.runsets[0].filters)
    for preset in ("table2_resnet101", "table2_baseline", "table1_baseline", "figure2_baseline", "table6_global_avg"):
        assert f"'{preset}'" in tags
        assert f"'{preset}'" in str(others.runsets[0].filters)
    assert "'table3_se'" not in tags


def test_a_dry_run_writes_the_specification(forked, tmp_path):
    (done,) = forked.run(tmp_path, "dashboard", "sweep=table2", "dry_run=true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "dashboard-table2.json\n", "")
    text = (tmp_path / "dashboard-table2.json").read_text()
    assert "| GE-θ⁺ | 21.88 | not run |  | 5.80 | not run |  |" in text
    assert '"#D55E00"' in text


def test_a_dashboard_sets_what_was_measured_beside_the_paper(monkeypatch):
    measured = SimpleNamespace(mean=21.5)
    monkeypatch.setattr(Runs, "of_training", lambda self, training, metric: measured if metric == "top1" else None)
    text = str(make_dashboard("table2", entity="me", project="geexp", runs=Runs([])).blocks[1])
    assert "-0.38" in text


class Api:
    """As ``wandb.Api``, with the runs that were logged."""

    def __init__(self, starts: list[Logged], error: Exception | None = None) -> None:
        self.starts, self.error = starts, error

    def runs(self, path: str, *, lazy: bool) -> list[Any]:
        assert (path, lazy) == ("me/geexp", False)
        if self.error is not None:
            raise self.error
        return [
            SimpleNamespace(
                id=start.id,
                config=start.config,
                summary=start.summary,
                state="finished" if start.finished else "crashed",
                scan_history=lambda start=start: [{"_step": n, **row} for n, row in enumerate(start.history)],
            )
            for start in self.starts
        ]


def test_runs_are_read_from_wandb_as_from_their_folders(jobs, sweep):
    starts = [start for _, start in jobs.values()]
    there, left_out = read_wandb("wandb:me/geexp", Api(starts))
    here, _ = read_runs(sweep / "outputs")
    assert left_out == []
    for ours in here:
        (theirs,) = (run for run in there if run.network == ours.network)
        assert replace(theirs.result, config=ours.result.config) == ours.result
        assert (theirs.seed, theirs.identity) == (ours.seed, ours.identity)
        assert [row["val/top1_error"] for row in theirs.history] == [row["val/top1_error"] for row in ours.history]
        assert str(theirs.folder).startswith("wandb:me/geexp/")


def test_initial_weights_are_known_by_their_digest(jobs):
    (folder, whole), *_ = jobs.values()
    result = Run(folder).result
    logged = summary(replace(result, identity=result.identity | {"weights": "12ab"}), ())
    assert "weights" not in whole.summary
    start = Logged(id="a", config=whole.config | {"weights": "elsewhere.pth"}, summary=whole.summary | logged)
    (found,), _ = read_wandb("me/geexp", Api([start]))
    assert found.identity["weights"] == "12ab"


def test_what_cannot_be_read_from_wandb_is_left_out_with_the_reason(jobs):
    (_, whole), *_ = jobs.values()
    unfinished = Logged(id="a", config=whole.config, summary={"epoch": 1})
    other = Logged(id="b", config=whole.config | {"optim.speed": 1}, summary=whole.summary)
    foreign = Logged(id="c", config={"lr": 1}, summary={"loss": 1}, finished=True)
    found, left_out = read_wandb("me/geexp", Api([unfinished, whole, other, foreign]))
    assert len(found) == 1
    assert [str(one.folder) for one in left_out] == [f"wandb:me/geexp/{name}" for name in "abc"]
    assert "crashed" in left_out[0].reason
    assert "optim.speed" in left_out[1].reason
    with pytest.raises(DataError, match=r"^wandb:me/geexp: Could not find project"):
        read_wandb("me/geexp", Api([], ValueError("Could not find project <Project me/geexp>\nmore")))


def test_reading_from_wandb_and_making_a_dashboard_need_a_login(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="nobody is logged in at W&B"):
        read_wandb("me/geexp")


def test_a_run_that_is_stopped_and_resumed_is_one_run(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = [*SETTINGS, "logger=[csv,wandb]"]
    with pytest.raises(DivergedError):
        train(job(tmp_path, *settings, "logger.group=table2", trouble("Poison", step=11)))
    assert train(job(tmp_path, *settings)) is not None  # by hand, without its sweep
    first, second = logged(tmp_path)
    assert first.id == second.id
    assert first.name == second.name
    assert first.group == second.group == "table2"
    assert first.tags == second.tags == ["none", "fashion_mnist_mini"]
    assert [row["epoch"] for row in first.epochs + second.epochs] == [1, 2]
    assert "best/top1_error" not in first.summary
    assert second.summary["result"]["epochs"] == 2
    assert [row[0] for row in table(tmp_path, "curves/history")] == [1, 2]
    assert len(list(tmp_path.glob("csv/version_*/metrics.csv"))) == 2


@pytest.mark.slow
def test_of_two_ranks_one_talks_to_wandb(forked, tmp_path):
    run = tmp_path / "run"
    arguments = [*SETTINGS, "logger=wandb", "trainer.devices=2", "trainer.limit_val_batches=null"]
    ranks = forked.run(tmp_path, "train", *arguments, f"hydra.run.dir={run}", ranks=2, WANDB_MODE="offline")
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr + ranks[1].stderr
    assert ranks[1].stderr == ""
    (start,) = logged(run)
    matrix = table(run, "confusion/matrix")
    assert sum(n for *_, n in matrix) == start.epochs[-1]["val/images"] == 2000
    assert sum(n for actual, predicted, n in matrix if actual != predicted) == start.epochs[-1]["val/top1_wrong"]


def test_of_1000_classes_only_the_most_confused_are_logged():
    counts = torch.eye(1000, dtype=torch.int64) * 30
    counts[3, 5], counts[5, 3], counts[7, 8] = 20, 10, 15
    counts[10, 20:400] = 1
    classes = [f"n{i:08}" for i in range(1000)]
    shown = charts([{"epoch": 1, "train/top1_error": 50.0, "val/top1_error": 40.0}], Confusion(counts, classes))
    assert shown.keys() == {"curves/top1_error", "curves/history", "confusion/pairs"}
    pairs = shown["confusion/pairs"].data
    assert pairs[:3] == [
        ["n00000003", "n00000005", 20, 40.0],
        ["n00000007", "n00000008", 15, 100 / 3],
        ["n00000005", "n00000003", 10, 25.0],
    ]
    assert len(pairs) == CONFUSED_PAIRS


def test_wandb_is_online_only_with_an_api_key(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert usual_mode() == "offline"
    (tmp_path / "netrc").write_text(f"machine wandb.example login user password {'0' * 40}\n")
    assert usual_mode() == "online"
    (tmp_path / "netrc").write_text("machine elsewhere.example login user password secret\n")
    assert usual_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert usual_mode() == "online"


def start(tmp_path: Path, *overrides: str) -> None:
    """Start and finish W&B for a run, as if it were the first of this process."""
    wandb.teardown()
    ready = job(tmp_path, *SETTINGS, "logger=wandb", *overrides)
    try:
        make_loggers(ready.config, tmp_path, "1234abcd")
    finally:
        finish_wandb()


@pytest.mark.parametrize(("mode", "runs"), [("offline", 1), ("dryrun", 1), ("disabled", 0)])
def test_the_modes_of_the_environment(monkeypatch, tmp_path, mode, runs):
    monkeypatch.setenv("WANDB_MODE", mode)
    start(tmp_path)
    assert len(logged(tmp_path)) == runs


@pytest.mark.parametrize("mode", ["", "off"])
def test_a_wrong_mode_in_the_environment(forked, tmp_path, mode):
    (done,) = forked.run(tmp_path, "train", "logger=wandb", "logger.mode=offline", WANDB_MODE=mode)
    assert done.returncode == 2
    assert not list(tmp_path.rglob("status.json"))  # the training has not started
    (message,) = done.stderr.splitlines()
    assert all(part in message for part in (f"WANDB_MODE={mode}: ", "offline", "dryrun", "unset"))


@pytest.mark.parametrize(
    ("variable", "value"), [("WANDB_BASE_URL", "wandb.example"), ("WANDB_PROJECT", "a/b"), ("WANDB_SILENT", "")]
)
def test_what_wandb_itself_rejects_is_one_message(monkeypatch, tmp_path, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as refused:
        start(tmp_path, "logger.mode=offline")
    assert variable.removeprefix("WANDB_").lower() in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_tag_has_at_most_64_characters():
    assert [len(tag) for tag in run_tags(train_config(f"data.name={'x' * 100}"))] == [5, 64]
