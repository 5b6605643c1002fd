"""The launcher's parts: what a plan says, how devices are shared out, how costs compare."""

import json
import os
import stat
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from geexp.config.catalog import BACKBONES
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from rich.console import Console

from geexp.config.compose import validated
from geexp.config.errors import ConfigError
from geexp.config.schema import TrainConfig
from geexp.launching.board import table_of
from geexp.launching.cost import cost
from geexp.launching.devices import Devices, threads_of_each, visible_gpus
from geexp.launching.jobs import Job, shell
from geexp.launching.plan import in_words, labels, plan, summary
from geexp.launching.progress import DONE, FAILED, NEW, RUNNING, UNFINISHED, progress_of
from geexp.registry import config_directory
from geexp.report.complexity_report import count_network
from geexp.runs.identity import identity, run_folder
from geexp.runs.lock import run_lock
from geexp.runs.run_files import LAST, append_row, checkpoint_folder, write_json


@cache
def config(*overrides: str) -> TrainConfig:
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(config_directory(), version_base="1.3"):
        return validated(TrainConfig, compose("train", overrides=list(overrides)))


def job(folder: Path, *overrides: str, number: int = 0) -> Job:
    c = config(*overrides)
    return Job(number, (*overrides, "hydra.mode=RUN"), (), c, folder / run_folder(c))


def jobs(folder: Path, *each: str) -> list[Job]:
    return [job(folder, *overrides.split(), number=number) for number, overrides in enumerate(each)]


def finish(done: Job, command: str = "python -m geexp.train") -> None:
    done.folder.mkdir(parents=True)
    write_json(
        done.folder / "result.json", {"status": "completed", "identity": identity(done.config), "command": command}
    )
    append_row(done.folder / "history.jsonl", row(1, 14.5))


def row(epoch: int, error: float, *, seconds: float = 60.0, steps: int = 100) -> dict[str, float]:
    return {"epoch": epoch, "step": epoch * steps, "seconds": seconds, "val/top1_error": error}


def ended(unfinished: Job, state: str, reason: str | None = None, *, checkpoint: bool = True) -> None:
    unfinished.folder.mkdir(parents=True, exist_ok=True)
    status = {"state": state, "reason": reason, "host": "elsewhere", "heartbeat": 0}
    (unfinished.folder / "status.json").write_text(json.dumps(status))
    if checkpoint:
        checkpoint_folder(unfinished.folder).mkdir(exist_ok=True)
        (checkpoint_folder(unfinished.folder) / LAST).touch()


# States


def test_the_five_states_of_a_run(tmp_path):
    new, done, stopped, failed, lost, running = jobs(tmp_path, *(f"seed={n}" for n in range(6)))
    finish(done)
    ended(stopped, "preempted", "SIGTERM")
    ended(failed, "diverged", "the training loss is not finite")
    ended(lost, "running")
    for one, state, said in (
        (new, NEW, "not started"),
        (done, DONE, "done"),
        (stopped, UNFINISHED, "stopped: SIGTERM"),
        (failed, FAILED, "failed: the training loss is not finite"),
        (lost, UNFINISHED, "stopped: killed, or its machine went down"),
    ):
        assert (progress_of(one).state, str(progress_of(one))) == (state, said)
    with run_lock(running.folder):
        assert progress_of(running).state == RUNNING
    assert progress_of(running).state == NEW


def test_a_result_of_another_configuration_is_refused_unless_by_force(tmp_path):
    one, other = jobs(tmp_path, "seed=1", "seed=2")
    finish(one)
    with pytest.raises(ConfigError, match="seed=2"):
        progress_of(replace(other, folder=one.folder))
    forced = replace(other, folder=one.folder, config=replace(other.config, force=True))
    (planned,) = plan([forced])
    assert planned.to_train
    assert in_words(planned) == "new: force=true"


def test_what_is_left_follows_the_last_epochs(tmp_path):
    of_epochs, of_iterations = jobs(tmp_path, "schedule.epochs=10", "schedule.epochs=null schedule.iterations=1000")
    for one in (of_epochs, of_iterations):
        with run_lock(one.folder):
            assert progress_of(one).eta is None
            append_row(one.folder / "history.jsonl", row(1, 30, seconds=1000))
            for epoch in (2, 3, 4):
                append_row(one.folder / "history.jsonl", row(epoch, 30 - epoch, seconds=50))
            progress = progress_of(one)
            assert progress.eta == pytest.approx(6 * 50)
            assert (progress.epoch, progress.error, progress.best) == (4, 26, 26)
            assert progress.epochs == (10 if one is of_epochs else None)


# Plans


def test_the_same_training_twice_is_one(tmp_path):
    rows = plan(jobs(tmp_path, "ge=theta", "ge=none", "ge=none ge.extent=4"))
    assert [row.to_train for row in rows] == [True, True, False]
    assert in_words(rows[2]) == f"the same as {rows[1].label}"
    assert summary(rows) == "3 rows, 2 distinct trainings: 2 to train"


def test_a_plan_says_what_happens_to_each_row(tmp_path):
    several = jobs(tmp_path, *(f"seed={n}" for n in range(4)))
    finish(several[0], "python -m geexp.train experiment=table2_baseline +sweep=table2")
    ended(several[1], "interrupted", "Ctrl-C")
    append_row(several[1].folder / "history.jsonl", row(1, 50))
    ended(several[2], "failed", "no space left")
    rows = plan(several)
    assert [in_words(row) for row in rows] == [
        "done, as table2_baseline",
        "goes on after epoch 1 (Ctrl-C)",
        "again (no space left)",
        "new",
    ]
    assert summary(rows) == "4 trainings: 1 done, 3 to train (1 to go on with, 1 failed before)"
    console = Console(width=200, record=True)
    console.print(table_of(rows))
    text = console.export_text()
    for said in ("seed=0", "done", "14.50 %", "stopped", "failed", "not started"):
        assert said in text


def test_labels_are_what_sets_jobs_apart(tmp_path):
    common = "experiment=demo trainer=cpu"
    assert labels(jobs(tmp_path, f"{common} ge=se", f"{common} ge=none seed=3")) == ["ge=se", "ge=none seed=3"]
    assert labels(jobs(tmp_path, "experiment=table1_stage2", "experiment=table1_all")) == [
        "table1_stage2",
        "table1_all",
    ]
    assert labels(jobs(tmp_path, common)) == ["resnet8 theta-global"]


def test_commands_can_be_typed(tmp_path):
    one = job(tmp_path, "ge.stages=[3,4]", "seed=1")
    assert shell(one.command()) == "python -m geexp.train 'ge.stages=[3,4]' seed=1 hydra.mode=RUN"
    nodes = job(tmp_path, "trainer.nodes=2", "trainer.devices=4", "optim.batch_size=64")
    assert shell(nodes.command()).startswith(
        "torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-id=<job> "
        "--rdzv-endpoint=<first node>:29500 -m geexp.train trainer.nodes=2"
    )


# Costs


@pytest.mark.parametrize("name", BACKBONES)
def test_the_catalogue_knows_what_a_backbone_costs(name):
    assert BACKBONES[name].gmacs == pytest.approx(count_network(name=name, ge="none").total.macs / 1e9, rel=0.01)


def test_longer_is_dearer():
    def of(*overrides: str) -> float:
        return cost(config(*overrides))

    assert of("experiment=table2_resnet101") > of("experiment=table2_baseline") > of("experiment=table4_baseline")
    assert of("experiment=table2_baseline") == pytest.approx(300 * 1_281_167 * 3.86)
    assert of("experiment=table2_baseline", "trainer.devices=8") == of("experiment=table2_baseline") / 8
    assert of("experiment=table2_baseline", "scale=imagenet100") == pytest.approx(30 * 128_116 * 3.86 / 4)
    # A detector: conv1 to conv4 on 600x800 pixels, conv5 on 128 regions.
    each = (3.86 - 0.732) * 600 * 800 / 224**2 + 128 * 0.732
    assert of("experiment=coco_baseline") == pytest.approx(320_000 * 8 * each)
    pyramid = 3.86 * 800 * (800 * 4 / 3) / 224**2 + 512 * (7 * 7 * 256 * 1024 + 1024 * 1024) / 1e9
    assert of("experiment=coco_baseline", "detector=fpn") == pytest.approx(320_000 * 8 * pyramid)
    assert of("experiment=table5_resnet110_cifar10_se") == pytest.approx(64_000 * 128 * 0.253)


# Devices


def of_devices(tmp_path: Path, *devices: int, accelerator: str = "auto") -> list[Job]:
    return jobs(
        tmp_path, *(f"trainer.devices={n} trainer.accelerator={accelerator} optim.batch_size=64" for n in devices)
    )


def test_gpus_are_shared_out_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    devices = Devices(of_devices(tmp_path, 1, 2), "auto")
    first, second = devices.take(2), devices.take(1)
    assert (first, second, devices.take(2)) == (["2", "3"], ["5"], None)
    assert devices.environment(first)["CUDA_VISIBLE_DEVICES"] == "2,3"
    devices.give_back(first)
    assert devices.take(3) == ["2", "3", "7"]


def test_some_gpus_only(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert Devices(of_devices(tmp_path, 1), 2).take(2) == ["0", "1"]
    assert Devices(of_devices(tmp_path, 1), [3, 1]).take(2) == ["3", "1"]
    with pytest.raises(ConfigError, match=r"launcher\.devices=5: this machine has 4 GPUs"):
        Devices(of_devices(tmp_path, 1), 5)


def test_without_gpus_the_largest_job_has_its_place_and_no_other_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices = Devices(of_devices(tmp_path, 1, 2), "auto")
    assert devices.total == 2
    assert "CUDA_VISIBLE_DEVICES" not in devices.environment(["0"])
    assert Devices(of_devices(tmp_path, 1, 1), "auto").total == 1


def test_jobs_on_the_processor_leave_the_gpus_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert Devices(of_devices(tmp_path, 1, accelerator="cpu"), "auto").total == 1


def test_a_job_that_is_too_large_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ConfigError, match=r"trainer\.devices=2: a job needs that many, and there are 1 GPUs"):
        Devices(of_devices(tmp_path, 1, 2), "auto")
    with pytest.raises(ConfigError, match="hydra/launcher=geexp_slurm"):
        Devices(jobs(tmp_path, "trainer.nodes=2 optim.batch_size=64"), "auto")


def test_the_driver_says_which_gpus_there_are(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n")
    driver.chmod(driver.stat().st_mode | stat.S_IEXEC)
    assert visible_gpus() == ["0", "1"]
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


def test_processes_share_the_processors_unless_it_is_said_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of_each(1) == {}
    assert threads_of_each(10_000) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of_each(2) == {}
