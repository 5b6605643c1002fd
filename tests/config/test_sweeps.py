"""The sweeps of the paper: their rows and trainings, what a user adds to them, and what a dry run prints."""

import re
import shlex
from collections.abc import Sequence
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from scripts.preset_headers import PLACES, TABLES, listed

from geexp.config.compose import store_schema
from geexp.config.errors import ConfigError
from geexp.config.schema import TrainConfig
from geexp.launching.jobs import SweepJob, jobs_of, shell
from geexp.launching.plan import plan, show_plan
from geexp.registry import config_directory
from geexp.runs.job import register_resolvers

CONF = config_directory()
NOWHERE = ("data.root=/nowhere", "outputs=/nowhere/outputs")


def compose(*overrides: str, run_mode: RunMode = RunMode.RUN) -> tuple[DictConfig, ConfigLoader]:
    """As the command composes it, with Hydra's own part; without a process."""
    register_resolvers()
    store_schema("train_schema", TrainConfig)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("train", list(overrides), run_mode)
    HydraConfig.instance().set_config(config)
    return config, loader


@cache
def sweep(name: str, *overrides: str) -> list[SweepJob]:
    config, loader = compose(f"+sweep={name}", *NOWHERE, *overrides, run_mode=RunMode.MULTIRUN)
    assert config.hydra.mode == RunMode.MULTIRUN
    return jobs_of(loader, config)


def presets(jobs: Sequence[SweepJob]) -> list[str]:
    return [job.overrides[0].removeprefix("experiment=") for job in jobs]


def folders(jobs: Sequence[SweepJob]) -> list[Path]:
    return [job.folder.relative_to(job.config.outputs) for job in jobs]


def dry_run(jobs: Sequence[SweepJob]) -> str:
    printed = StringIO()
    show_plan(plan(jobs), Console(file=printed, width=200), commands=True)
    return printed.getvalue()


def commands(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("python -m ")]


def test_the_sweeps_are_those_of_the_paper_and_leave_the_rest_to_presets_and_user():
    """That their rows are the paper's is tested with the presets."""
    assert {path.stem for path in CONF.glob("sweep/*")} == {*PLACES, "tables", "demo", "evidence"}
    for name in (*PLACES, "tables"):
        text = yaml.safe_load((CONF / f"sweep/{name}.yaml").read_text())
        assert text.pop("logger") == {"group": name}
        assert text["hydra"].pop("sweeper")["params"].keys() == {"experiment"}
        assert text == {"hydra": {"mode": "MULTIRUN"}}, name
    assert [len(listed(name)) for name in TABLES] == [5, 6, 6, 7, 5 * 3 * 2, 5]
    assert sorted(name for table in TABLES for name in listed(table)) == list(listed("tables"))


@pytest.mark.parametrize("name", ["table1", "figure6", "coco"])
def test_a_sweep_trains_its_rows_and_prints_their_commands(name):
    """The commands are composed again, from nothing but what is printed."""
    jobs = sweep(name)
    assert presets(jobs) == list(listed(name))
    for line, job in zip(commands(dry_run(jobs)), jobs, strict=True):
        config, _ = compose(*shlex.split(line)[3:])
        assert config.hydra.mode == RunMode.RUN
        assert Path(config.hydra.run.dir) == job.folder
        assert config.logger.group == name


def test_the_detectors_start_from_the_backbones_of_figure_2():
    for detector, preset in zip(sweep("coco"), ("figure2_baseline", "figure2_theta_e8"), strict=True):
        (backbone,) = sweep("figure2", f"experiment={preset}")
        assert (detector.config.model, detector.config.ge) == (backbone.config.model, backbone.config.ge)
        assert backbone.folder.match(str(Path(str(detector.config.backbone_checkpoint)).parents[1]))


@pytest.mark.slow
def test_the_dry_run_of_all_tables(run, tmp_path):
    done = run("train", "+sweep=tables", *NOWHERE, "dry_run=true")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n59 rows, 54 distinct trainings: 54 to train\n" in done.stdout
    states = dict(re.findall(r"^# \d+: (\w+) \((.*)\), .*$", done.stdout, re.MULTILINE))
    assert list(states) == list(listed("tables"))
    assert sum(state.startswith("the same as table") for state in states.values()) == 59 - 54
    options = shlex.join(["+sweep=tables", *NOWHERE, "hydra.mode=RUN"])
    assert commands(done.stdout) == [f"python -m geexp.train experiment={name} {options}" for name in states]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["table2", "table5", "tables", "coco"])
def test_the_command_in_the_header_trains_as_those_of_the_presets(name, monkeypatch):
    """Seen at the last row; the others differ from it by their presets."""

    def composed(path: str, *overrides: str) -> DictConfig:
        words = shlex.split(re.search(r"^# Command: +(.*)$", (CONF / path).read_text(), re.MULTILINE)[1])
        while "=" in words[0]:
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        assert words[:3] == ["python", "-m", "geexp.train"]
        return compose(*words[3:], *overrides)[0]

    last = listed(name)[-1]
    alone = composed(f"experiment/{last}.yaml")
    folder = alone.hydra.run.dir
    swept = composed(f"sweep/{name}.yaml", f"experiment={last}", "hydra.mode=RUN")
    assert (swept.hydra.run.dir, swept.data.root) == (folder, alone.data.root)
    assert (swept.trainer.accelerator, swept.trainer.devices) == ("gpu", 1)


# What the user adds


def test_devices_and_nodes_stand_in_the_command():
    """With batch normalisation over the whole batch they are the same runs."""
    eight = sweep("figure4", "launcher.devices_per_job=8", "trainer.sync_batchnorm=true")
    for line, preset in zip(commands(dry_run(eight)), listed("figure4"), strict=True):
        assert line.startswith(f"python -m geexp.train experiment={preset} ")
        assert " launcher.devices_per_job=8 " in line
    assert [job.config.trainer.devices for job in eight] == [8, 8]
    assert folders(eight) == folders(sweep("figure4"))
    (two_nodes, _) = sweep("figure4", "launcher.devices_per_job=8", "trainer.nodes=2")
    assert "\ntorchrun --nnodes=2 --nproc-per-node=8 " in dry_run([two_nodes])


def test_seeds_multiply():
    jobs = sweep("figure4", "seed=1,2,3")
    assert presets(jobs) == ["figure4_baseline"] * 3 + ["figure4_theta"] * 3
    assert [job.config.seed for job in jobs] == [1, 2, 3] * 2
    assert len(set(folders(jobs))) == 6
    assert "6 trainings: 6 to train" in dry_run(jobs)
    assert "│ figure4_theta seed=3 " in dry_run(jobs)


def test_the_evidence_extends_to_other_comparisons():
    """By the options in its header, with one seed: CIFAR-10, Figure 2, Table 6 and Table 1."""

    def rows(*options: str) -> list[str]:
        return [f"{folder.parts[0]} {folder.parts[2]}" for folder in folders(sweep("evidence", "seed=0", *options))]

    five = ["none", "se-global", "theta-minus-global", "theta-global", "theta-plus-global"]
    assert rows("data=cifar10") == [f"cifar10-half {ge}" for ge in five]
    extents = [f"cifar100-half {ge}-e{extent}" for ge in ("theta-minus", "theta") for extent in (2, 4)]
    assert rows("ge=theta_minus,theta", "extent='2','4'") == extents
    maximum = ["cifar100-half theta-minus-e4-max", "cifar100-half theta-minus-global-max"]
    assert rows("ge=theta_minus", "ge.pool=max", "extent='4',global") == maximum
    stages = [f"cifar100-half theta-global-stage{stage}" for stage in (2, 3)]
    assert rows("ge=theta", "placement=stage2,stage3") == stages


def test_an_experiment_narrows_and_a_scale_makes_every_row_smaller():
    assert presets(sweep("table1", "experiment=table1_all,table1_stage2")) == ["table1_all", "table1_stage2"]
    assert [folder.parts[0] for folder in folders(sweep("figure6", "scale=imagenet10"))] == ["imagenet-imagenet10"] * 2


def test_a_mistake_names_its_row():
    with pytest.raises(ConfigError, match=r"^job 0 \(experiment=figure6_baseline .*\): ge\.stages=\[5\]: "):
        sweep("figure6", "ge.stages=[5]")


def test_with_and_without_m(run, tmp_path):
    without, with_m = (run("train", *m, "+sweep=table2", *NOWHERE, "dry_run=true") for m in ([], ["-m"]))
    assert (with_m.returncode, with_m.stderr) == (without.returncode, without.stderr) == (0, "")
    assert with_m.stdout == without.stdout
    assert commands(without.stdout) == [shell(job.command()) for job in sweep("table2")]
    assert list(tmp_path.iterdir()) == []


def test_missing_data_are_reported_before_a_folder_is_made(run, tmp_path):
    done = run("train", "+sweep=figure4", "data.root=/nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    message = done.stderr.splitlines()[-1]
    assert message.startswith("geexp.train: figure4_baseline: data=imagenet: train and val not found in /nowhere")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
