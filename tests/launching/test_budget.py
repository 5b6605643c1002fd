"""geexp.plan: hours, dates and disk, by hand."""

from dataclasses import replace
from datetime import datetime

import pytest
from rich.console import Console

from geexp.config.errors import ConfigError
from geexp.config.schema import HardwareConfig
from geexp.launching.budget import budget, show_budget, size
from geexp.launching.jobs import Job
from geexp.launching.plan import plan
from geexp.runs.identity import identity
from geexp.runs.run_files import append_row, write_json
from tests.launching.test_parts import ended, jobs, row

FAST = HardwareConfig(devices=2, tflops=50, images_per_second=1e9)


def finish(job: Job, *, seconds: float) -> None:
    job.folder.mkdir(parents=True)
    result = {"status": "completed", "identity": identity(job.config), "epochs": 5, "devices": {"count": 1}}
    write_json(job.folder / "result.json", result | {"seconds": seconds})


def test_hours_follow_from_images_and_gmacs(tmp_path):
    rows = plan(jobs(tmp_path, "experiment=table2_baseline", "experiment=table2_resnet101"))
    found = budget(rows, FAST)
    by_hand = [300 * 1_281_167 * gmacs * 6e9 / 50e12 / 3600 for gmacs in (3.86, 7.57)]
    assert [one.hours for one in found.estimates] == pytest.approx(by_hand)
    assert found.device_hours == pytest.approx(sum(by_hand))
    assert found.hours == pytest.approx(max(by_hand))  # side by side
    assert budget(rows, replace(FAST, devices=1)).hours == pytest.approx(sum(by_hand))
    assert found.estimates[0].disk == 25_557_032 * 8 * 3
    slow = replace(FAST, images_per_second=1000)
    assert budget(rows, slow).estimates[0].hours == pytest.approx(300 * 1_281_167 / 1000 / 3600)


def test_more_devices_take_less_time_and_the_same_hours_of_devices(tmp_path):
    (one,) = budget(plan(jobs(tmp_path, "experiment=table2_baseline")), FAST).estimates
    (two,) = budget(plan(jobs(tmp_path, "experiment=table2_baseline trainer.devices=2")), FAST).estimates
    assert two.hours == pytest.approx(one.hours / 2)
    with pytest.raises(ConfigError, match=r"hardware\.devices=1: .* wants 2 devices"):
        budget(plan(jobs(tmp_path, "experiment=table2_baseline trainer.devices=2")), replace(FAST, devices=1))


def test_what_is_done_is_free_and_what_was_begun_costs_the_rest(tmp_path):
    done, begun, again = jobs(tmp_path, "seed=0", "seed=1", "seed=0")
    finish(done, seconds=0)
    ended(begun, "preempted", "SIGTERM")
    append_row(begun.folder / "history.jsonl", row(1, 50))
    found = budget(plan([done, begun, again]), FAST)
    assert [one.row.job for one in found.estimates] == [begun]
    (whole,) = budget(plan(jobs(tmp_path, "seed=2")), FAST).estimates
    assert found.estimates[0].hours == pytest.approx(whole.hours * 4 / 5)


def test_a_run_that_is_done_tells_the_speed_of_those_like_it(tmp_path):
    done, same, other = jobs(tmp_path, "seed=0", "seed=1", "ge=none")
    seconds = 5 * 10_000 / 123  # five epochs at 123 images a second
    finish(done, seconds=seconds)
    estimates = budget(plan([done, same, other]), FAST).estimates
    assert [one.measured for one in estimates] == [True, False]
    assert estimates[0].hours == pytest.approx(seconds / 3600)


def test_the_command_says_what_and_when(run, tmp_path):
    done = run("plan", "+sweep=table2", "data.root=/nowhere", "outputs=/nowhere/outputs", "hardware=h100x8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 trainings: 6 to train" in done.stdout
    assert f"done by {datetime.now().year}" in done.stdout or f"done by {datetime.now().year + 1}" in done.stdout
    assert "~ from stated speeds, not measured: 150 TFLOP/s" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hardware=gpus"], "hardware=gpus: not allowed"),
        (["hardware=a100x8", "hardware.tflops=0"], "hardware.tflops=0.0: must be above 0"),
        (["hardware.devices=0"], "hardware.devices=0: must be at least 1"),
        (["hardware.gpus=3"], "hardware.gpus: there is no such key"),
    ],
)
def test_wrong_hardware_is_one_line(run, tmp_path, arguments, said):
    done = run("plan", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"geexp.plan: {said}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_read_easily():
    assert [size(n) for n in (12, 1_234, 613_000_000, 4.52e9, 3e12)] == ["12 B", "1.23 kB", "613 MB", "4.52 GB", "3 TB"]


def test_a_table_for_a_terminal(tmp_path):
    console = Console(width=120, record=True)
    show_budget(plan(jobs(tmp_path, "seed=0", "seed=1")), FAST, console)
    text = console.export_text()
    assert "seed=0" in text
    assert "hours on 2 devices" in text
