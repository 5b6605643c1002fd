"""Every option of every group composes to a valid configuration; the ways to say the same thing agree."""

import re

from geexp.backbones import build_model, stages
from geexp.config.compose import composed_training as config
from geexp.config.errors import ConfigError
from geexp.operators import gather_excite
from geexp.registry import config_directory, locate, options
from geexp.runs.identity import effective_ge, ge_slug
from geexp.runs.job import make_job

CONF = config_directory()
ELSEWHERE = ("hydra", "sweep", "experiment", "hardware")  # test_experiments.py, test_sweeps.py, test_budget.py
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ELSEWHERE)
DETECTORS = {("detector", "c4"), ("detector", "fpn"), ("detector", "c4_small"), ("feed", "coco")} | {
    ("data", name) for name, entry in options("data").items() if entry["kind"] == "boxes"
}


def run_folder(*overrides: str) -> str:
    return make_job(config(*overrides)).slug


def test_every_option_is_valid(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a_class").mkdir(parents=True)
    needs = {
        "model": [],
        "model=timm": ["model.arch=resnet18"],
        "data=image_folder": [f"data.root={tmp_path}"],
        "recipe": ["data=imagenet", "feed=pack"],
        "feed=folder": ["data=imagenet"],
        "feed=pack": ["data=imagenet"],
        "placement=stage5": ["model=resnet50"],
        "scale": ["data=imagenet"],
        "scale=cifar_short": ["data=cifar10"],
    }
    detector = {"model": "resnet10_slim", "detector": "c4", "data": "coco2014"}
    for group in GROUPS:
        for option in sorted(path.stem for path in (CONF / group).glob("*.yaml")):
            choice = f"{group}={option}" if group != "extent" else f"extent='{option}'"
            others = needs.get(choice, needs.get(group, ["model=resnet20"]))
            if (group, option) in DETECTORS:
                others = [f"{key}={needed}" for key, needed in detector.items() if key != group] + ["ge=none"]
            try:
                config(*others, choice)
            except ConfigError as error:
                raise AssertionError(f"{choice}, with {others}: {error}") from error
    for path in CONF.glob("data/augmentation/*.yaml"):
        config("data=imagenet", "feed=reference", f"data/augmentation={path.stem}")


def test_every_file_says_what_it_is():
    """In a comment at its top; presets and sweeps by their headings."""
    for path in CONF.rglob("*.yaml"):
        if path.parent.name not in ("hydra_logging", "job_logging", "help"):
            assert any(line.startswith("# ") for line in path.read_text().splitlines()[:3]), path
    for path in (*CONF.glob("experiment/*"), *CONF.glob("sweep/*")):
        headings = re.findall(r"^# (\w+): ", path.read_text(), re.MULTILINE)
        on_imagenet = ["BN"] if "override /data: imagenet" in path.read_text() else []
        assert headings == ["What", "Command", *on_imagenet, "Hardware", "Number"], path


def test_group_and_key_say_the_same():
    assert config("extent='8'").ge.extent == config("ge.extent=8").ge.extent == config("ge.extent='8'").ge.extent == 8
    assert config("extent=global").ge.extent == "global"
    assert config("model=resnet50", "placement=stage4").ge.stages == [4]
    assert config("model=resnet50", "ge.stages=[4,5]").ge.stages == [4, 5]
    assert config("ge=theta_minus", "ge.pool=max").ge.pool == "max"
    assert config("ge.extent=32").ge.extent == 32


def test_the_files_describe_what_there_is():
    assert {*gather_excite.VARIANTS, "none"} == set(options("ge"))
    for name, entry in options("model").items():
        if name != "timm":
            assert locate(entry["_target_"]).__name__ == name
            assert list(stages(build_model(name))) == entry["stages"]


def test_a_run_is_named_by_what_determines_its_result():
    base = run_folder()
    assert base.startswith("fashion_mnist_mini/resnet8/theta-global/demo/seed0-")
    for change in ("seed=1", "optim.lr=0.2", "ge.stages=[2]", "data.augmentation.flip=false", "trainer.max_epochs=2"):
        assert run_folder(change) != base
    for same in (
        "outputs=elsewhere",
        "logger=none",
        "logger=[csv,wandb]",
        "+logger.mine={_target_: a.B}",
        "feed=reference",
        "feed.on_error=skip",
        "ge.stages=[2,3,4]",
        "ge.pool=avg",
        "ge.implementation=fused",
        "resume=false",
    ):
        assert run_folder(same) == base
    photos, pack = config("data=imagenet"), ("data=imagenet", "feed=pack")
    assert run_folder(*pack) == make_job(photos).slug  # the same bytes
    assert run_folder(*pack, "recipe=jpeg").startswith("imagenet-jpeg-max500-q90/")  # another data set
    assert run_folder("+callbacks.swa={_target_: a.B}") != base
    assert run_folder("callbacks=device_stats") == base
    resnet = ("model=resnet50", "ge=none")
    assert run_folder(*resnet, "model.stride_in=null") == run_folder(*resnet)
    assert run_folder("ge=none", "ge.extent=8") == run_folder("ge=none")
    assert run_folder("optim.label_smoothing=0") == base != run_folder("optim.label_smoothing=0.1")
    pooled = ("ge=theta_minus", "ge.extent=2")
    assert run_folder(*pooled, "ge.border=real") == run_folder(*pooled) != run_folder(*pooled, "ge.border=padded")
    assert "stage45-" not in base


def test_slugs_are_readable():
    def slug(*overrides):
        c = config("model=resnet50", *overrides)
        return ge_slug(c.ge, c.model)

    assert slug("ge=none") == "none"
    assert slug("ge=theta_minus", "ge.extent=4", "ge.pool=max") == "theta-minus-e4-max"
    assert slug("ge=theta", "ge.stages=[4]") == "theta-global-stage4"
    assert slug("ge=theta_minus", "ge.extent=2", "ge.border=padded") == "theta-minus-e2-padded"
    assert slug("ge=theta_minus", "ge.border=padded") == "theta-minus-global"  # has no border


def test_identity_keeps_only_what_has_an_effect():
    c = config("ge=theta", "ge.reduction=4")
    assert effective_ge(c.ge, c.model) == {"variant": "theta", "extent": "global", "stages": [2, 3, 4]}
    assert "root" not in make_job(c).identity["data"]
