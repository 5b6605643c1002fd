"""How the devices of this machine are distributed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from geexp.config.errors import ConfigError
from geexp.data.parallel import processors
from geexp.launching.jobs import SweepJob
from geexp.launching.processes import Devices, visible_gpus
from geexp.launching.supervisor import thread_limit
from tests.support.sweep_jobs import sweep_jobs


def of_devices(tmp_path: Path, *devices: int, accelerator: str = "auto") -> list[SweepJob]:
    lines = (f"trainer.devices={n} trainer.accelerator={accelerator} optim.batch_size=64" for n in devices)
    return sweep_jobs(tmp_path, *lines)


def test_gpus_are_shared_out_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,2,3,7")
    devices = Devices(of_devices(tmp_path, 1, 2), "auto")
    first, second = devices.take(2), devices.take(1)
    assert (first, second, devices.take(2)) == (["5", "2"], ["3"], None)
    assert devices.environment(first)["CUDA_VISIBLE_DEVICES"] == "5,2"
    devices.give_back(first)
    assert devices.take(3) == ["5", "2", "7"]


@pytest.mark.parametrize(
    ("visible", "wanted", "names"),
    [
        ("4,5,6,7", 2, ["4", "5"]),
        ("4,5,6,7", [3, 1], ["7", "5"]),
        ("4,5,6,7", ["0", "2"], ["4", "6"]),
        ("GPU-1f,GPU-2e", [1], ["GPU-2e"]),
        ("GPU-1f,GPU-2e", ["GPU-2e", 0], ["GPU-2e", "GPU-1f"]),
        ("MIG-7a,MIG-7b", "auto", ["MIG-7a", "MIG-7b"]),
        ("MIG-7a,MIG-7b", ["MIG-7b"], ["MIG-7b"]),
        ("2, 3,-1,5", "auto", ["2", "3"]),  # as CUDA reads it
        (None, [1, 0], ["1", "0"]),
        (None, ["GPU-1f"], ["GPU-1f"]),
    ],
)
def test_chosen_gpus_are_among_the_visible_ones(tmp_path, monkeypatch, visible, wanted, names):
    _show(monkeypatch, visible)
    devices = Devices(of_devices(tmp_path, 1), wanted)
    assert devices.take(devices.total) == names


@pytest.mark.parametrize(
    ("visible", "wanted", "told"),
    [
        ("4,5", 7, ["launcher.devices=7", "2 GPUs are visible", "CUDA_VISIBLE_DEVICES=4,5"]),
        ("4,5", [0, 4], ["launcher.devices=[0, 4]", "no GPU 4", "CUDA_VISIBLE_DEVICES=4,5", "0 to 1"]),
        ("4,5", [-1], ["no GPU -1"]),
        ("4,5", ["GPU-1f"], ["no GPU GPU-1f", "CUDA_VISIBLE_DEVICES=4,5"]),
        (None, [2], ["no GPU 2", "2 GPUs are visible"]),
    ],
)
def test_gpus_that_are_not_visible_are_refused(tmp_path, monkeypatch, visible, wanted, told):
    _show(monkeypatch, visible)
    with pytest.raises(ConfigError) as refused:
        Devices(of_devices(tmp_path, 1), wanted)
    assert all(words in str(refused.value) for words in told)


def _show(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> None:
    """CUDA_VISIBLE_DEVICES; without it, two GPUs."""
    if visible is None:
        monkeypatch.setattr("geexp.launching.processes.visible_gpus", lambda: ["0", "1"])
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


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


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, for a driver of three lines")
@pytest.mark.parametrize(("status", "gpus"), [(0, ["0", "1", "2"]), (100, [])])
def test_the_driver_counts_the_gpus(tmp_path, monkeypatch, status, gpus):
    source = f"int cuInit(unsigned flags) {{ return {status}; }} int cuDeviceGetCount(int *n) {{ *n = 3; return 0; }}"
    compile_ = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", tmp_path / "libcuda.so.1"]
    subprocess.run(compile_, input=source.encode(), check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == gpus


def test_without_a_driver_there_are_no_gpus(tmp_path, monkeypatch):
    (tmp_path / "libcuda.so.1").touch()  # found before any real one
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == []


def test_jobs_side_by_side_share_the_processors(tmp_path, monkeypatch):
    limits = {"OMP_NUM_THREADS": "4", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    for name in limits:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GEEXP_PROCESSORS", "16")
    assert processors() == 16
    devices = Devices(of_devices(tmp_path, 1, 2, 1), 4)
    assert devices.environment(["0"]) == {"GEEXP_PROCESSORS": "4"} | limits
    assert devices.environment(["0", "1"]) == {"GEEXP_PROCESSORS": "8"} | limits  # for its two processes
    assert Devices(of_devices(tmp_path, 1), 4).environment(["0"]) == limits  # no other job reads images beside it
    monkeypatch.setenv("GEEXP_PROCESSORS", "2")
    assert set(devices.environment(["0"]).values()) == {"1"}
    assert Devices(of_devices(tmp_path, 1), "auto").environment(["0"]) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert thread_limit(2) == {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
