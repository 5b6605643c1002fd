"""What a user adds from outside, by ``_target_``, is trained, resumed, swept, evaluated and reported like ours."""

import json
import re
from pathlib import Path

import pytest
import torch

from geexp.runs.job import make_job
from tests.support.configuration import train_config
from tests.support.outside import CHOICES, OPTIONS, write_outside


@pytest.fixture
def mine(forked, tmp_path):
    """A command with the user's module and configuration files at hand."""
    options = write_outside(tmp_path)

    def command(entry: str, *arguments: str, code: int = 0):
        flags = [f"--config-dir={options}"] if entry in ("train", "status", "plan") else []
        (done,) = forked.run(tmp_path, entry, *flags, *arguments, PYTHONPATH=str(tmp_path))
        assert done.returncode == code, done.stderr
        return done

    return command


def folders(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in tmp_path.glob("outputs/*/*/*/*/*/result.json"))


def test_trained_resumed_evaluated_and_reported(mine, tmp_path):
    assert "top-1 error" in mine("train", *CHOICES).stdout
    (folder,) = folders(tmp_path)
    assert folder.relative_to(tmp_path / "outputs").parts[:4] == ("Stripes", "Tiny", "Fifth-global", "linear")
    result = json.loads((folder / "result.json").read_text())
    identity = result["identity"]
    assert identity["ge"] == {
        "variant": "Fifth", "extent": "global", "stages": [2, 3], "_target_": "mine.Fifth", "squeeze": 4,
    }  # fmt: skip
    assert (identity["model"]["_target_"], identity["model"]["width"]) == ("mine.Tiny", 8)
    assert (identity["data"]["_target_"], identity["data"]["period"]) == ("mine.Stripes", 4)
    assert (identity["schedule"]["_target_"], identity["schedule"]["floor"]) == ("mine.linear", 0.1)
    assert (identity["optim"]["_target_"], identity["optim"]["betas"]) == ("torch.optim.AdamW", [0.9, 0.99])
    assert result["metrics"]["last"]["lr"] == pytest.approx(0.01 * max(0.1, 1 - 11 / 12))
    rows = [(folder / name / "version_0/metrics.csv").read_text() for name in ("csv", "rows")]
    assert rows[0] == rows[1]
    assert "betas" in (folder / "rows/version_0/hparams.yaml").read_text()
    weights = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert weights["model.layer1.0.ge.down.weight"].shape == (2, 8)
    assert "finished earlier" in mine("train", *CHOICES).stderr
    assert json.loads(mine("evaluate", f"run={folder}", "format=json").stdout)["identical"] is True
    report = json.loads(mine("report.__main__", "format=json").stdout)
    assert [tmp_path / run for run in report["runs"]] == [folder]
    assert not report["left_out"]
    assert "Fifth" in (tmp_path / "outputs/report/trained.md").read_text()


def test_an_argument_makes_another_run_and_a_sweep_of_them(mine, tmp_path):
    plan = mine("train", "-m", *CHOICES, "ge.squeeze=2,4", "ge.extent=2,global", "dry_run=true").stdout
    assert "4 trainings" in plan
    assert len(set(re.findall(r"seed0-\w{8}", plan))) == 4
    mine("train", "-m", *CHOICES, "ge.squeeze=2,4", "debug=one_batch")
    assert len(folders(tmp_path)) == 2
    status = mine("status", "-m", *CHOICES, "ge.squeeze=2,4", "debug=one_batch").stdout
    assert "2 of 2 done" in status


STRIPES = OPTIONS["data/stripes.yaml"]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"ge/fifth.yaml": "_target_: mine.Sixth\n"}, ["mine.Sixth", "Sixth"]),
        ({"ge/fifth.yaml": "_target_: nowhere.Fifth\n"}, ["nowhere"]),
        ({"ge/fifth.yaml": "_target_: mine.Fifth\nsqeeze: 4\n"}, ["sqeeze"]),
        ({"model/tiny.yaml": "_target_: mine.Tiny\nwidth: 8\n"}, ["model.stages"]),
        ({"data/stripes.yaml": STRIPES.replace("period", "perod")}, ["perod"]),
        ({"data/stripes.yaml": STRIPES.replace("classes: 2", "classes: 3")}, ["data.num_classes=3"]),
        ({"schedule/linear.yaml": OPTIONS["schedule/linear.yaml"].replace("floor", "flor")}, ["flor"]),
        ({"optim/adamw.yaml": OPTIONS["optim/adamw.yaml"].replace("betas", "bettas")}, ["bettas"]),
    ],
)
def test_a_mistake_in_it_is_one_message(mine, tmp_path, change, parts):
    for name, content in change.items():
        (tmp_path / "conf" / name).write_text(content)
    done = mine("train", *CHOICES, code=2)
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("geexp.train: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in message


def test_a_bug_in_it_shows_its_traceback(mine, tmp_path):
    module = tmp_path / "mine.py"
    module.write_text(module.read_text().replace("return x * gate", "raise KeyError('a bug')"))
    done = mine("train", *CHOICES, code=1)
    assert "Traceback" in done.stderr
    assert "mine.py" in done.stderr


def test_any_network_of_timms_resnet_family(mine, tmp_path):
    arguments = ["model=timm", "model.arch=resnet18", "data=stripes", "schedule=linear"]
    arguments += ["ge=theta_minus", "ge.extent=4"]
    mine("train", *arguments, "debug=one_batch")
    (folder,) = folders(tmp_path)
    assert folder.relative_to(tmp_path / "outputs").parts[1] == "timm_resnet18"
    assert json.loads((folder / "result.json").read_text())["identity"]["model"]["arch"] == "resnet18"
    done = mine("train", "model=timm", "model.arch=resnext50_32x4", "data=stripes", code=2)
    assert "resnext50_32x4d" in done.stderr


def test_a_callback_that_only_watches_is_known_by_its_class():
    def slug(*overrides: str) -> str:
        return make_job(train_config(*overrides)).slug

    lightnings = "pytorch_lightning.callbacks"
    averaging = f"+callbacks.device_stats={{_target_: {lightnings}.StochasticWeightAveraging, swa_lrs: 0.1}}"
    assert slug(averaging) != slug()
    assert slug(f"+callbacks.mine={{_target_: {lightnings}.DeviceStatsMonitor}}") == slug()
