"""geexp.plan: work, hours, dates and disk, by hand."""

from dataclasses import replace
from datetime import datetime

import pytest
from rich.console import Console

from geexp.config.errors import ConfigError
from geexp.config.schema import HardwareConfig
from geexp.launching.budget import budget, cost, images_per_epoch, show_budget
from geexp.launching.plan import plan
from geexp.registry import options
from geexp.training.network import count_network
from tests.support.configuration import train_config
from tests.support.sweep_jobs import finish, leave, reach, sweep_job, sweep_jobs

FAST = HardwareConfig(devices=2, tflops=50, images_per_second=1e9)


@pytest.mark.parametrize("name", [name for name, model in options("model").items() if model.get("gmacs")])
def test_the_files_state_what_a_backbone_costs(name):
    model = train_config(f"model={name}").model
    home = {"num_classes": model.home_classes, "image_size": model.home_size, "in_channels": 3}
    counted = count_network(model, train_config("ge=none").ge, **home).total.macs / 1e9
    assert model.gmacs == pytest.approx(counted, rel=0.01)


def test_longer_is_dearer():
    def of(*overrides: str) -> float:
        return cost(train_config(*overrides))

    assert of("experiment=table2_resnet101") > of("experiment=table2_baseline") > of("experiment=table4_baseline")
    assert of("experiment=table2_baseline") == pytest.approx(300 * 1_281_167 * 3.86)
    assert of("experiment=table2_baseline", "trainer.devices=8") == of("experiment=table2_baseline") / 8
    assert of("experiment=table2_baseline", "scale=imagenet100") == pytest.approx(30 * 128_116 * 3.86 / 4)
    # A detector: conv1 to conv4 on 600x800 pixels, conv5 on 128 regions.
    each = (3.86 - 0.732) * 600 * 800 / 224**2 + 128 * 0.732
    assert of("experiment=coco_baseline") == pytest.approx(320_000 * 8 * each)
    pyramid = 3.86 * 800 * (800 * 4 / 3) / 224**2 + 512 * (7 * 7 * 256 * 1024 + 1024 * 1024) / 1e9
    assert of("experiment=coco_baseline", "detector=fpn") == pytest.approx(320_000 * 8 * pyramid)
    assert of("experiment=table5_resnet110_cifar10_se") == pytest.approx(64_000 * 128 * 0.2529)


def test_the_classes_that_are_kept_are_a_share_of_all():
    """Also of the hundred of CIFAR-100, and of a set of which no number of classes is known."""
    kept = train_config("data=cifar100", "data.keep_classes=50", "data.num_classes=50")
    assert images_per_epoch(kept) == 25_000
    unlisted = replace(kept, data=replace(kept.data, keep_classes=100, total_classes=1000, training_images=10_000))
    assert images_per_epoch(unlisted) == 1_000


def test_images_of_class_folders_are_counted_and_of_others_not_known(tmp_path):
    config = train_config()
    own = replace(config, data=replace(config.data, kind=None, training_images=None))
    assert images_per_epoch(own) is None
    assert cost(own) is None
    for name in ("a/1.png", "a/2.png", "b/deep/3.png", "a/._1.png", "a/.hidden/1.png", "a/notes.txt"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    (tmp_path / "train/a/up").symlink_to("..")
    folders = replace(own, data=replace(own.data, kind="files", root=str(tmp_path)))
    assert images_per_epoch(folders) == 3


def test_an_unknown_cost_is_a_question_mark(tmp_path):
    known, other = sweep_jobs(tmp_path, "seed=1", "seed=2")
    unknown = replace(
        other, config=replace(other.config, data=replace(other.config.data, training_images=None, kind=None))
    )
    rows = plan([known, unknown])
    found = budget(rows, FAST)
    assert [one.hours is None for one in found.estimates] == [False, True]
    assert found.hours == pytest.approx(found.estimates[0].hours)
    console = Console(width=200, record=True)
    show_budget(rows, found, FAST, console)
    text = console.export_text()
    assert [row.split("│")[4].strip() for row in text.splitlines() if "seed=2" in row] == ["?"]
    assert "data.training_images" in text
    show_budget(rows[1:], budget(rows[1:], FAST), FAST, console)
    assert "done by" not in console.export_text()


def test_hours_follow_from_images_and_gmacs(tmp_path):
    rows = plan(sweep_jobs(tmp_path, "experiment=table2_baseline", "experiment=table2_resnet101"))
    found = budget(rows, FAST)
    by_hand = [300 * 1_281_167 * gmacs * 6e9 / 50e12 / 3600 for gmacs in (3.86, 7.57)]
    assert [one.hours for one in found.estimates] == pytest.approx(by_hand)
    assert found.device_hours == pytest.approx(sum(by_hand))
    assert found.hours == pytest.approx(max(by_hand))  # side by side
    assert budget(rows, replace(FAST, devices=1)).hours == pytest.approx(sum(by_hand))
    assert found.estimates[0].disk == 25_557_032 * 8 * 3
    slow = replace(FAST, images_per_second=1000)
    assert budget(rows, slow).estimates[0].hours == pytest.approx(300 * 1_281_167 / 1000 / 3600)


def test_two_devices_take_half_the_time(tmp_path):
    one, two = plan(sweep_jobs(tmp_path, "experiment=table2_baseline", "experiment=table2_baseline trainer.devices=2"))
    of_one, of_two = budget([one, two], FAST).estimates
    assert of_two.hours == pytest.approx(of_one.hours / 2)
    with pytest.raises(ConfigError, match=r"hardware\.devices=1: .* needs 2 devices"):
        budget([two], replace(FAST, devices=1))


def test_what_is_done_is_free_and_what_was_begun_costs_the_rest(tmp_path):
    done, begun, again = sweep_jobs(tmp_path, "seed=0", "seed=1", "seed=0")
    finish(done, seconds=0)
    leave(begun, "preempted", "SIGTERM")
    reach(begun, 1, 50)
    found = budget(plan([done, begun, again]), FAST)
    assert [one.row.job for one in found.estimates] == [begun]
    (whole,) = budget(plan([sweep_job(tmp_path, "seed=2")]), FAST).estimates
    assert found.estimates[0].hours == pytest.approx(whole.hours * 4 / 5)


def test_a_finished_run_tells_the_speed_of_those_like_it(tmp_path):
    done, same, other = sweep_jobs(tmp_path, "seed=0", "seed=1", "ge=none")
    seconds = 5 * 10_000 / 123  # five epochs at 123 images a second
    finish(done, seconds=seconds)
    estimates = budget(plan([done, same, other]), FAST).estimates
    assert [one.measured for one in estimates] == [True, False]
    assert estimates[0].hours == pytest.approx(seconds / 3600)


def test_the_command_names_what_and_when(run, tmp_path):
    done = run("plan", "+sweep=table2", "data.root=/nowhere", "outputs=/nowhere/outputs", "hardware=h100x8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 trainings: 6 to train" in done.stdout
    assert f"done by {datetime.now().year}" in done.stdout or f"done by {datetime.now().year + 1}" in done.stdout
    assert "150 TFLOP/s" in done.stdout
    assert list(tmp_path.iterdir()) == []
