"""How the devices of this machine are distributed."""

import os
import stat
from pathlib import Path

import pytest

from geexp.config.errors import ConfigError
from geexp.launching.jobs import SweepJob
from geexp.launching.processes import Devices, visible_gpus
from geexp.launching.supervisor import thread_limit
from tests.support.sweep_jobs import sweep_jobs


def of_devices(tmp_path: Path, *devices: int, accelerator: str = "auto") -> list[SweepJob]:
    lines = (f"trainer.devices={n} trainer.accelerator={accelerator} optim.batch_size=64" for n in devices)
    return sweep_jobs(tmp_path, *lines)


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


def test_a_job_that_is_too_large_is_refused_before_anything_starts(tmp_path, monkeypatch, run):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ConfigError, match=r"trainer\.devices=2: a job needs that many, but only 1 GPUs are available"):
        Devices(of_devices(tmp_path, 1, 2), "auto")
    with pytest.raises(ConfigError, match="hydra/launcher=geexp_slurm"):
        Devices(sweep_jobs(tmp_path, "trainer.nodes=2 optim.batch_size=64"), "auto")
    for launcher in ("launcher.devices=1", "launcher=inline"):
        done = run("train", "-m", "trainer.devices=1,2", launcher, "trainer.accelerator=cpu")
        assert done.returncode == 2
        assert "trainer.devices=2" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_driver_lists_the_gpus(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n")
    driver.chmod(driver.stat().st_mode | stat.S_IEXEC)
    assert visible_gpus() == ["0", "1"]
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


def test_processes_share_the_processors_unless_their_number_is_given(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert thread_limit(1) == {}
    assert thread_limit(10_000) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert thread_limit(2) == {}
