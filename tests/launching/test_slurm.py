"""Jobs of a sweep on SLURM: the batch script, and jobs on a real cluster (make test-slurm)."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from geexp.config.errors import PREEMPTED, ConfigError
from geexp.launching import slurm
from geexp.launching.jobs import SweepJob
from geexp.launching.slurm import (
    COMPLETE,
    FAILED,
    PENDING,
    RUNNING,
    InQueue,
    SlurmSettings,
    Submitted,
    parameters,
    queue,
    submit,
    watch,
)
from geexp.launching.slurm_task import exit_code, rank_environment
from geexp.runs.run import Run
from geexp.runs.run_files import write_json
from tests.conftest import environment
from tests.support.processes import until
from tests.support.runs import history, same_weights
from tests.support.sweep_jobs import sweep_job

ROOT = Path(__file__).parents[2]


def make_job(folder: Path, *overrides: str, number: int = 0) -> SweepJob:
    made = sweep_job(folder, *overrides, number=number, run=folder)
    return replace(made, overrides=(*overrides, f"hydra.run.dir={folder}"))


def test_a_task_is_the_rank_that_torchrun_would_make_it():
    """The third of four tasks, on the second of two nodes."""
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
    assert rank_environment(slurm | {"SLURM_LOCALID": "0", "SLURM_NODEID": "1"}) == {
        "TORCHELASTIC_RUN_ID": "4711",
        "RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
    }


@pytest.mark.parametrize(
    ("code", "asked", "becomes"),
    [
        (0, True, 0),
        (-15, True, PREEMPTED),  # before it could listen
        (1, True, PREEMPTED),  # without the others, which could not listen
        (-15, False, 143),
        (2, False, 2),
    ],
)
def test_exit_codes_of_a_task(code, asked, becomes):
    assert exit_code(code, asked=asked) == becomes


@pytest.fixture
def render(monkeypatch, tmp_path):
    """``render(settings, overrides…)``: the batch script that submitit writes."""
    from submitit.slurm.slurm import _make_sbatch_string

    def render(settings: SlurmSettings, *overrides: str, jobs: int = 3) -> list[str]:
        asked = parameters([make_job(tmp_path, *overrides)] * jobs, settings, tmp_path)
        return _make_sbatch_string(command="task", folder=tmp_path, map_count=jobs, **asked).splitlines()

    return render


def test_the_batch_script(render):
    settings = SlurmSettings(partition="gpu", account="vision", mem="64G", cpus_per_task=8, minutes=90, gpu="a100")
    settings.setup, settings.sbatch, settings.parallel = ["module load cuda"], {"reservation": "friday"}, 2
    lines = render(settings, "trainer=gpu", "trainer.devices=4", "trainer.nodes=2")
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert asked >= {"array=0-2%2", "nodes=2", "ntasks-per-node=4", "gpus-per-node=a100:4", "cpus-per-task=8"}
    assert asked >= {"partition=gpu", "account=vision", "mem=64G", "time=90", "reservation=friday", "job-name=geexp"}
    assert asked >= {"requeue", "signal=USR1@120", "open-mode=append"}  # what preemption depends on
    assert not [line for line in asked if line.startswith(("qos", "constraint", "wckey", "error"))]
    (srun,) = (line.split() for line in lines if line.startswith("srun"))
    assert {"--kill-on-bad-exit=1", "--open-mode=append", "--cpus-per-task=8"} <= set(srun)
    assert lines.index("module load cuda") < lines.index("trap : TERM USR1")


def test_a_cpu_training_asks_for_no_gpu(render):
    lines = render(SlurmSettings(minutes=None), "trainer=cpu", "trainer.devices=2")
    assert not [line for line in lines if "gpu" in line or "--time" in line or "--mem" in line]


def test_without_slurm_or_without_time_to_train_nothing_is_submitted(monkeypatch, tmp_path):
    jobs = [make_job(tmp_path, "trainer=cpu")]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on this machine"):
        submit(jobs, SlurmSettings(), tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(ConfigError, match=r"Set hydra\.launcher\.minutes to at least 4"):
        submit(jobs, SlurmSettings(minutes=3), tmp_path)


def test_one_array_per_shape_and_nothing_twice(monkeypatch, tmp_path):
    """The longest array first; what is still in the queue is waited for, and what has left it goes there again."""
    arrays = []

    def sbatch(jobs, settings, folder):
        arrays.append([job.number for job in jobs])
        return [f"{len(arrays)}_{place}" for place in range(len(jobs))]

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "_submit_array", sbatch)
    devices = [2, 1, 1, 2, 1]
    jobs = [make_job(tmp_path / str(n), "trainer=cpu", f"trainer.devices={d}", number=n) for n, d in enumerate(devices)]
    first = submit(jobs, SlurmSettings(), tmp_path / "slurm")
    assert arrays == [[1, 2, 4], [0, 3]]
    assert [entry.slurm_id for entry in first] == ["2_0", "1_0", "1_1", "2_1", "1_2"]
    states = {"1_0": "RUNNING", "1_1": "PENDING", "1_2": "COMPLETED", "2_0": "FAILED"}
    monkeypatch.setattr(slurm, "queue", lambda: {slurm_id: InQueue(state) for slurm_id, state in states.items()})
    again = submit(jobs, SlurmSettings(), tmp_path / "slurm")
    assert arrays[2:] == [[0, 3], [4]]
    assert [entry.slurm_id for entry in again] == ["3_0", "1_0", "1_1", "3_1", "4_0"]


def test_a_job_is_watched_to_its_end(monkeypatch, tmp_path):
    """One is requeued, fails and says why; the other has no result, whatever SLURM says."""
    entries = [Submitted(make_job(tmp_path / n, "trainer=cpu"), f"1_{n}", tmp_path / f"{n}.out") for n in "01"]
    seen = [("PENDING", "PENDING"), ("RUNNING", "RUNNING"), ("PENDING", "COMPLETING"), ("FAILED", "COMPLETED")]

    def asked():
        states = seen.pop(0)
        if states[0] == "FAILED":
            write_json(tmp_path / "0/status.json", {"state": "failed", "reason": "no room", "host": "", "heartbeat": 1})
            (tmp_path / "1.out").write_text("geexp.train: no images\nsrun: error: task 0: Exited with exit code 102\n")
        return {f"1_{place}": InQueue(state, "Priority", "n1") for place, state in enumerate(states)}

    monkeypatch.setattr(slurm, "queue", asked)
    (tmp_path / "0").mkdir()
    changes = list(filter(None, watch(entries, every=0)))
    first, second = ([(c.state, c.detail) for c in changes if c.submitted is entry] for entry in entries)
    assert first[:3] == [
        (PENDING, "job 1_0, Priority"),
        (RUNNING, "job 1_0 on n1"),
        (PENDING, "preempted, resumes when scheduled again"),
    ]
    assert first[3] == (FAILED, f"no room (job 1_0: failed, log: {tmp_path / '0.out'})")
    assert second[2] == (FAILED, f"geexp.train: no images (job 1_1: completed, log: {tmp_path / '1.out'})")


def test_ctrl_c_ends_the_waiting_only(monkeypatch, tmp_path, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm, "queue", interrupted)
    entries = [Submitted(make_job(tmp_path, "trainer=cpu"), slurm_id, tmp_path) for slurm_id in ("7_0", "7_1", "12")]
    with pytest.raises(KeyboardInterrupt):
        list(watch(entries))
    assert "scancel 7 12" in capsys.readouterr().err


# From here on with a real one.

SETTINGS = ["trainer=cpu", "ge=none", "logger=none", "optim.batch_size=32", "schedule.epochs=2"]
SETTINGS += ["trainer.limit_train_batches=20", "trainer.limit_val_batches=2"]
PROBE = "+callbacks.probe={_target_: tests.support.probes."


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """An empty folder, in which jobs start."""
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM is running here; make test-slurm starts one")
    monkeypatch.chdir(tmp_path)
    for key in set(os.environ) - set(environment()):
        monkeypatch.delenv(key)
    for key, value in environment(PYTHONPATH=str(ROOT)).items():
        monkeypatch.setenv(key, value)
    return tmp_path


def trained(jobs: list[SweepJob], folder: Path, **settings) -> dict[int, list[tuple[str, str]]]:
    """Every job's states, by its number."""
    entries = submit(jobs, SlurmSettings(**settings), folder / "slurm")
    seen: dict[int, list[tuple[str, str]]] = {job.number: [] for job in jobs}
    for change in filter(None, watch(entries, every=0.5)):
        seen[change.submitted.job.number].append((change.state, change.detail))
    return seen


@pytest.mark.slurm
def test_a_preempted_job_goes_on_and_a_failing_one_harms_no_other(cluster):
    """An array of three jobs of two ranks. The last one is preempted; its number for SLURM is also the array's.

    Workers feed the ranks, and get every signal, too.
    """
    shape = ["trainer.devices=2", "feed=reference", "feed.workers=1"]
    faults = [[], [PROBE + "LastRankFails}"], [PROBE + "Preempted, step: 7}"]]
    jobs = [make_job(cluster / f"run{n}", *SETTINGS, *shape, *fault, number=n) for n, fault in enumerate(faults)]
    seen = trained(jobs, cluster)
    undisturbed, failing, preempted = (job.folder for job in jobs)
    logs = {path.name: path.read_text() for path in (cluster / "slurm").glob("*_log.out")}
    assert [state for state, _ in seen[0]][-2:] == [RUNNING, COMPLETE], logs
    assert [state for state, _ in seen[2]][-4:] == [RUNNING, PENDING, RUNNING, COMPLETE], logs
    assert seen[1][-1][0] == FAILED
    assert Run(failing).result is None
    assert seen[1][-1][1].startswith("rank 1: [rank1]: RuntimeError: made to fail (")
    # Requeued once, and by one only: it went on at the step at which it had stopped, the others did not start again.
    starts = [json.loads(line) for line in (preempted / "starts.jsonl").read_text().splitlines()]
    assert [requeued for requeued, _ in starts] == [0, 1]
    (log,) = (text for text in logs.values() if "requeueing job" in text)
    assert log.count("requeueing job") == 1
    assert 8 <= starts[1][1] < 20
    assert f"stopped in epoch 1 after step {starts[1][1]}" in log
    assert (undisturbed / "train.log").read_text().count("training into") == 1
    # It makes no difference.
    result, reference = Run(preempted).result, Run(undisturbed).result
    assert result is not None
    assert reference is not None
    assert result.devices["count"] == 2
    for of in ("last", "best"):
        for key in ("val/top1_error", "val/loss", "train/loss"):
            assert result.metrics[of][key] == reference.metrics[of][key]
    assert history(preempted) == history(undisturbed)
    same_weights(preempted, undisturbed)


@pytest.mark.slurm
def test_a_cancelled_job_stays_cancelled(cluster):
    """Though it saves and says that it can be gone on with, as the preempted do."""
    job = make_job(cluster / "run", *SETTINGS, "schedule.epochs=1000")
    (entry,) = submit([job], SlurmSettings(), cluster / "slurm")
    (same,) = submit([job], SlurmSettings(), cluster / "slurm")
    assert same == entry
    until(lambda: (job.folder / "history.jsonl").is_file())
    subprocess.run(["scancel", entry.slurm_id], check=True)
    *_, last = filter(None, watch([entry], every=0.5))
    assert last.state == FAILED
    assert "cancelled" in last.detail
    assert json.loads((job.folder / "status.json").read_text())["state"] == "preempted"
    assert (job.folder / "checkpoints/last.ckpt").is_file()
    assert queue()[entry.slurm_id].state == "CANCELLED"


@pytest.mark.slurm
def test_what_sbatch_refuses(cluster):
    with pytest.raises(ConfigError, match="sbatch failed: invalid partition specified: nowhere") as refused:
        submit([make_job(cluster / "run", *SETTINGS)], SlurmSettings(partition="nowhere"), cluster / "slurm")
    assert "\n" not in str(refused.value)
    assert list((cluster / "slurm").iterdir()) == []
