"""The sweeps of the paper: every row of a table once, in its order, what the headers say, and what a dry run prints."""

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
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from geexp.config.errors import ConfigError
from geexp.config.schema import TrainConfig
from geexp.launching.jobs import Job, jobs_of, shell
from geexp.launching.plan import plan, show_plan
from geexp.report.numbers import paper
from geexp.runs.identity import register_resolvers
from tests.config.test_experiments import CONF, PRESETS, ROWS, Row, header, number_to_reach

TABLES = [f"table{number}" for number in range(1, 7)]
FIGURES = ["figure2", "figure4", "figure6"]
SWEEPS = [*TABLES, *FIGURES, "tables", "coco"]
# Composing a row takes more than a tenth of a second. The dry run of all tables has those of Table 5, too.
COMPOSED = [
    pytest.param("table5", marks=pytest.mark.slow),
    *(name for name in SWEEPS if name not in ("table5", "tables")),
]
NOWHERE = ("data.root=/nowhere", "outputs=/nowhere/outputs")

# By hand, from the paper: how many trainings each table prints (Table 5: 5 rows, 3 networks, 2 data sets) …
HAND_COUNT = {"table1": 5, "table2": 6, "table3": 6, "table4": 7, "table5": 5 * 3 * 2, "table6": 5}
# … and which of them are one training: the first of each line stays, the others are counted once too often.
SHARED = [
    ("Table 1, ResNet-50 (Baseline)", "Table 2, ResNet-50 (Baseline)", "Table 6, ResNet-50"),
    ("Table 1, GE-θ (all)", "Table 2, GE-θ"),
    ("Table 2, ResNet-101", "Table 3, ResNet-101 (Baseline)"),
    ("Table 2, GE-θ⁻", "Table 6, (global, avg)"),
]
ALL_ROWS = 5 + 6 + 6 + 7 + 30 + 5
DISTINCT = ALL_ROWS - 2 - 1 - 1 - 1


def rows_of(name: str) -> list[Row]:
    """The rows or curves of a table or figure in the paper's order."""
    return [row for row in ROWS if row.prefix == f"{name}_"]


@cache
def listed(name: str) -> list[str]:
    """The presets that the file of a sweep names."""
    (parameter,) = yaml.safe_load((CONF / f"sweep/{name}.yaml").read_text())["hydra"]["sweeper"]["params"].items()
    if name == "tables":
        assert parameter == ("experiment", "glob(table*)")
        return [preset for preset in PRESETS if preset.startswith("table")]
    assert parameter[0] == "experiment"
    return parameter[1].split(", ")


@cache
def runs() -> dict[str, str]:
    """The run of every preset, if its table lists its rows in the paper's order; that it does is tested below."""
    return {
        preset: row.run
        for name in (*TABLES, *FIGURES, "coco")
        for preset, row in zip(listed(name), rows_of(name), strict=True)
    }


def compose(*overrides: str, run_mode: RunMode = RunMode.RUN) -> tuple[DictConfig, ConfigLoader]:
    """As the command composes it, with Hydra's own part; without a process."""
    register_resolvers()
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("train", list(overrides), run_mode)
    HydraConfig.instance().set_config(config)
    return config, loader


@cache
def sweep(*overrides: str) -> list[Job]:
    config, loader = compose(*overrides, run_mode=RunMode.MULTIRUN)
    assert config.hydra.mode == RunMode.MULTIRUN
    return jobs_of(loader, config)


def of_paper(name: str) -> list[Job]:
    return sweep(f"+sweep={name}", *NOWHERE)


def presets(jobs: Sequence[Job]) -> list[str]:
    return [job.overrides[0].removeprefix("experiment=") for job in jobs]


def folders(jobs: Sequence[Job]) -> list[str]:
    return [str(job.folder.relative_to(job.config.outputs)) for job in jobs]


def dry_run(jobs: Sequence[Job]) -> str:
    printed = StringIO()
    show_plan(plan(jobs), Console(file=printed, width=200), commands=True)
    return printed.getvalue()


def commands(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("python -m ")]


# Which rows


@pytest.mark.parametrize("name", [*TABLES, *FIGURES])
def test_a_sweep_lists_every_preset_once(name):
    assert sorted(listed(name)) == [preset for preset in PRESETS if preset.startswith(f"{name}_")]


@pytest.mark.parametrize("name", COMPOSED)
def test_a_sweep_has_the_rows_of_its_table_in_their_order(name):
    assert presets(of_paper(name)) == listed(name)
    assert folders(of_paper(name)) == [row.run for row in rows_of(name)]


def test_the_detectors_start_from_the_backbones_of_figure_2():
    for job, backbone in zip(of_paper("coco"), ("figure2_baseline", "figure2_theta_e8"), strict=True):
        (trained,) = [job for job in of_paper("figure2") if job.overrides[0] == f"experiment={backbone}"]
        assert job.config.model == trained.config.model
        assert job.config.ge == trained.config.ge
        pattern = Path(job.config.backbone_checkpoint)
        assert trained.folder.match(str(pattern.parents[1]))


def test_there_are_no_other_sweeps():
    assert sorted(path.stem for path in CONF.glob("sweep/*")) == sorted([*SWEEPS, "demo"])


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_a_group_of_the_logger_and_leaves_the_rest_to_presets_and_user(name):
    text = yaml.safe_load((CONF / f"sweep/{name}.yaml").read_text())
    assert text.keys() == {"logger", "hydra"}
    assert text["logger"] == {"group": name}
    assert text["hydra"].keys() == {"mode", "sweeper"}


# How many trainings


def test_the_rows_of_the_tables_by_hand():
    assert {name: len(rows_of(name)) for name in TABLES} == HAND_COUNT
    by_run: dict[str, list[str]] = {}
    for row in ROWS:
        if row.where.startswith("Table"):
            by_run.setdefault(row.run, []).append(f"{row.where}, {row.label}")
    assert [tuple(names) for names in by_run.values() if len(names) > 1] == SHARED
    assert (ALL_ROWS, DISTINCT) == (sum(HAND_COUNT.values()), len(by_run)) == (59, 54)


@pytest.mark.slow
def test_the_dry_run_of_all_tables(run, tmp_path):
    done = run("train", "+sweep=tables", *NOWHERE, "dry_run=true")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n{ALL_ROWS} rows, {DISTINCT} distinct trainings: {DISTINCT} to train\n" in done.stdout
    about = re.findall(r"^# \d+: (\w+) \((.*)\), (.*)$", done.stdout, re.MULTILINE)
    shown = {name: (state, str(Path(folder).relative_to("/nowhere/outputs"))) for name, state, folder in about}
    assert list(shown) == listed("tables")
    assert {name: folder for name, (_, folder) in shown.items()} == {name: runs()[name] for name in listed("tables")}
    assert sum(state.startswith("the same as table") for state, _ in shown.values()) == ALL_ROWS - DISTINCT
    options = shlex.join(["+sweep=tables", *NOWHERE, "hydra.mode=RUN"])
    assert commands(done.stdout) == [f"python -m geexp.train experiment={name} {options}" for name in shown]
    assert list(tmp_path.iterdir()) == []


# What the headers say


def and_then(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def what(name: str) -> str:
    if name in TABLES:
        return f"Table {name[-1]}, {HAND_COUNT[name]} rows: {paper()[name]['title']}."
    return {
        "figure2": "Figure 2, 9 curves: the extents of GE-θ⁻ and of GE-θ on ResNet-50, and the baseline.",
        "figure4": "Figure 4, 2 curves: ResNet-50 and GE-θ, 100 epochs with fixed steps.",
        "figure6": "Figure 6, 2 curves: ShuffleNet and GE-θ, 100 epochs with fixed steps.",
        "tables": "Tables 1-6, 59 rows in the order of their names; table1 to table6 have the paper's order.",
        "coco": "The detection experiment, 2 rows: Faster R-CNN on COCO 2014, train to val. Their backbones are "
        "trained first, into the same outputs: python -m geexp.train -m experiment=figure2_baseline,figure2_theta_e8 "
        "data.root=/data/imagenet trainer=gpu",
    }[name]


def command(name: str) -> str:
    """A GPU for each job, as in the presets' commands. ImageNet and CIFAR lie in different folders."""
    if name == "tables":
        return "GEEXP_DATA=/data python -m geexp.train +sweep=tables trainer=gpu"
    root = {"table5": "/data", "coco": "/data/coco"}.get(name, "/data/imagenet")
    return f"python -m geexp.train +sweep={name} data.root={root} trainer=gpu"


def hardware(name: str) -> str:
    """The hours of the presets' headers, each training counted once; and where else these trainings are rows."""
    first: dict[str, str] = {}  # the preset that comes first, of every training
    for preset in listed(name):
        first.setdefault(runs()[preset], preset)
    said = [header(CONF / f"experiment/{preset}.yaml")["Hardware"] for preset in first.values()]
    total = sum(float(re.match(r"about (\S+) GPU-hours, estimated and not measured: ", text)[1]) for text in said)
    of_rows = f" of {len(listed(name))} rows" if len(listed(name)) > len(first) else ""
    parts = [f"about {total:,.0f} GPU-hours, estimated and not measured, for {len(first)} trainings{of_rows}"]
    here = {row.where for table in (TABLES if name == "tables" else [name]) for row in rows_of(table)}
    for folder, preset in first.items():
        elsewhere = list(dict.fromkeys(row.where for row in ROWS if row.run == folder and row.where not in here))
        if elsewhere:
            parts.append(f"{preset} is also in {and_then(elsewhere)}")
    return "; ".join(parts)


def errors(rows: Sequence[Row]) -> str:
    """The printed errors of the rows after their names, and where they are printed if that is another table."""
    said = []
    for row in rows:
        printed = re.match(r"top-1 / top-5 error (\S+ / \S+) % on [^(]*( \(Table \d\))?$", number_to_reach(row))
        if printed is not None:
            said.append(f"{row.label} {printed[1]}{printed[2] or ''}")
    return ", ".join(said)


def number(name: str) -> str:
    two = "top-1 / top-5 error in %"
    if name == "tables":
        return f"the {ALL_ROWS} of Tables 1-6, which sweep/table1.yaml to table6.yaml name"
    if name == "coco":
        return "mAP in %: " + ", ".join(f"{row['label']} {row['map']}" for row in paper()["detection"]["rows"])
    if name == "table5":
        rows = []
        for row in paper()["table5"]["rows"]:
            pairs = (row[model] for model in paper()["table5"]["columns"])
            rows.append(f"{row['label']} " + ", ".join(f"{p['cifar10']:.2f} / {p['cifar100']:.2f}" for p in pairs))
        return f"test error in % on CIFAR-10 / CIFAR-100 of ResNet-110, ResNet-164, WRN-16-8: {'; '.join(rows)}"
    if name in TABLES:
        return f"{two}: {errors(rows_of(name))}"
    shown = f"shown in Figure {name[-1]}, not printed"
    return f"{two}: {errors(rows_of(name))}; the others are {shown}" if errors(rows_of(name)) else shown


@pytest.mark.parametrize("name", SWEEPS)
def test_header(name):
    words = header(CONF / f"sweep/{name}.yaml")
    assert words == {
        "What": what(name),
        "Command": command(name),
        "Hardware": hardware(name),
        "Number": number(name),
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_the_command_of_the_header_trains_what_those_of_its_presets_train(name, monkeypatch):
    """Seen at the last row; the others differ from it by their presets, and are composed elsewhere."""
    last = listed(name)[-1]
    alone, _ = compose(*shlex.split(header(CONF / f"experiment/{last}.yaml")["Command"])[3:])
    folder = alone.hydra.run.dir
    words = shlex.split(header(CONF / f"sweep/{name}.yaml")["Command"])
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    assert words[:3] == ["python", "-m", "geexp.train"]
    config, _ = compose(*words[3:], f"experiment={last}", "hydra.mode=RUN")
    assert config.hydra.run.dir == folder
    assert config.data.root == alone.data.root
    assert (config.trainer.accelerator, config.trainer.devices) == ("gpu", 1)


# What a dry run prints


@pytest.mark.parametrize(
    "name",
    ["table1", "figure6", "coco", *(pytest.param(name, marks=pytest.mark.slow) for name in SWEEPS[1:-3])],
)
def test_every_printed_command_is_the_run_of_its_row(name):
    """Composed again, from nothing but what is printed."""
    printed = commands(dry_run(of_paper(name)))
    for line, job in zip(printed, of_paper(name), strict=True):
        words = shlex.split(line)
        config, _ = compose(*words[words.index("geexp.train") + 1 :])
        assert config.hydra.mode == RunMode.RUN
        assert Path(config.hydra.run.dir) == job.folder
        assert config.logger.group == name


def test_devices_and_nodes_stand_in_the_command():
    """Batch normalisation that sees the whole batch makes them the same run; without it, they are others."""
    eight = sweep("+sweep=figure4", *NOWHERE, "launcher.devices_per_job=8", "trainer.sync_batchnorm=true")
    for line, preset in zip(commands(dry_run(eight)), listed("figure4"), strict=True):
        assert line.startswith(f"python -m geexp.train experiment={preset} ")
        assert " launcher.devices_per_job=8 " in line
    assert [job.config.trainer.devices for job in eight] == [8, 8]
    assert folders(eight) == folders(of_paper("figure4"))
    (two_nodes, _) = sweep("+sweep=figure4", *NOWHERE, "launcher.devices_per_job=8", "trainer.nodes=2")
    assert "\ntorchrun --nnodes=2 --nproc-per-node=8 " in dry_run([two_nodes])


# What the user adds


def test_seeds_multiply():
    jobs = sweep("+sweep=figure4", *NOWHERE, "seed=1,2,3")
    assert presets(jobs) == ["figure4_baseline"] * 3 + ["figure4_theta"] * 3
    assert [job.config.seed for job in jobs] == [1, 2, 3] * 2
    assert len(set(folders(jobs))) == 6
    assert "6 trainings: 6 to train" in dry_run(jobs)
    assert "│ figure4_theta seed=3 " in dry_run(jobs)


def test_an_experiment_narrows():
    assert folders(sweep("+sweep=table1", *NOWHERE, "experiment=table1_all")) == [runs()["table1_all"]]
    two = ["table1_all", "table1_stage2"]
    assert presets(sweep("+sweep=table1", *NOWHERE, f"experiment={','.join(two)}")) == two


def test_a_scale_makes_every_row_smaller():
    scaled = folders(sweep("+sweep=figure6", *NOWHERE, "scale=imagenet10"))
    assert [folder.split("/")[0] for folder in scaled] == ["imagenet-imagenet10"] * 2


def test_a_mistake_names_its_row():
    mistake = (
        r"^job 0 \(experiment=figure6_baseline \+sweep=figure6 .*\): ge\.stages=\[5\]: shufflenet_g3 has no stage 5"
    )
    with pytest.raises(ConfigError, match=mistake):
        sweep("+sweep=figure6", *NOWHERE, "ge.stages=[5]")


def test_with_and_without_m(run, tmp_path):
    without, with_m = (run("train", *m, "+sweep=table2", *NOWHERE, "dry_run=true") for m in ([], ["-m"]))
    assert (with_m.returncode, with_m.stderr) == (without.returncode, without.stderr) == (0, "")
    assert with_m.stdout == without.stdout
    assert commands(without.stdout) == [shell(job.command()) for job in of_paper("table2")]
    assert list(tmp_path.iterdir()) == []


def test_missing_data_are_told_before_anything_is_made(run, tmp_path):
    done = run("train", "+sweep=figure4", "data.root=/nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    message = done.stderr.splitlines()[-1]
    assert message.startswith("geexp.train: figure4_baseline: data=imagenet: train and val not found in /nowhere")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
