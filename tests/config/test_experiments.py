"""The presets: one for every row and curve of the paper, with generated headers; and the scales, which are marked."""

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import yaml
from scripts.preset_headers import PLACES, listed, outdated

from geexp.config.checks import SCALES
from geexp.config.compose import composed_training as config
from geexp.config.errors import ConfigError
from geexp.config.protocol import planned_epochs, stretched
from geexp.config.schema import GatherExciteConfig, TrainConfig
from geexp.registry import config_directory
from geexp.report.rows import paper
from geexp.runs.identity import flat
from geexp.runs.job import make_job

CONF = config_directory()
PRESETS = sorted(path.stem for path in CONF.glob("experiment/*.yaml") if not path.stem.startswith("demo"))

IMAGENET = ("data=imagenet", "schedule=plateau", "optim=paper")
SHUFFLENET = ("data=imagenet", "data/augmentation=mild", "schedule=shufflenet400", "optim=shufflenet")
FIXED = {
    "figure4": ("resnet50", ("data=imagenet", "schedule=fixed100", "optim=paper")),
    "figure6": ("shufflenet_g3", ("data=imagenet", "data/augmentation=mild", "schedule=fixed100", "optim=shufflenet")),
}
PREACT = ("schedule=preact_cifar", "optim=cifar")
WRN = ("schedule=wrn_cifar", "optim=wrn")
COCO = ("model=resnet50", "ge=none", "data=coco2014", "detector=c4", "schedule=coco_faster_rcnn", "optim=coco")

Row = tuple[str, str, dict[str, Any], tuple[str, ...]]


def identity(config: TrainConfig) -> dict[str, Any]:
    return make_job(config).identity


def run_folder(config: TrainConfig) -> str:
    return make_job(config).slug


def variant(ge: dict[str, Any]) -> GatherExciteConfig:
    return replace(config(f"ge={ge['variant']}").ge, **ge)


def preset(name: str) -> TrainConfig:
    return config(f"experiment={name}")


def rows_of(place: str) -> Iterator[Row]:
    """Label, network and protocol of the rows or curves of a table or figure, in the paper's order."""
    if place == "table5":
        for row in paper()[place]["rows"]:
            for model in paper()["table5"]["columns"]:
                for data in row[model]:
                    how = WRN if model == "wrn16_8" else PREACT
                    yield row["label"], model, {"variant": row["ge"]}, (f"data={data}", *how)
    elif place == "figure2":
        yield "baseline", "resnet50", {"variant": "none"}, IMAGENET
        for variant in ("theta_minus", "theta"):
            for extent in (2, 4, 8, "global"):
                yield f"{variant} {extent}", "resnet50", {"variant": variant, "extent": extent}, IMAGENET
    elif place.startswith("figure"):
        model, protocol = FIXED[place]
        for variant in ("none", "theta"):
            yield variant, model, {"variant": variant}, protocol
    else:
        trained = "backbone_checkpoint=not/trained/yet.ckpt"
        protocol = {"table4": SHUFFLENET, "coco": (*COCO, trained)}.get(place, IMAGENET)
        for row in paper()["detection" if place == "coco" else place]["rows"]:
            ge = {"variant": row["ge"]}
            if row["ge"] != "none":  # global extent, all stages and average pooling, if the row names no others
                ge |= {"extent": row.get("extent") or "global", "pool": row.get("pool") or "avg"}
                ge["stages"] = row.get("stages")
            yield row["label"], row["model"], ge, protocol


def test_the_presets_are_the_rows_of_the_paper():
    """Compared in everything that determines the result; the sweep of a table or figure has the paper's order."""
    assert sorted(name for place in PLACES for name in listed(place)) == PRESETS
    assert {key for key in paper() if key.startswith("table")} == {key for key in PLACES if key.startswith("table")}
    wrong = []
    for place in PLACES:
        for name, (label, model, ge, protocol) in zip(listed(place), rows_of(place), strict=True):
            ours = flat(identity(preset(name)))
            theirs = flat(identity(replace(config(*protocol), model=config(f"model={model}").model, ge=variant(ge))))
            keys = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
            wrong += [f"{name}: {key}={ours.get(key)}; {place}, {label}: {theirs.get(key)}" for key in sorted(keys)]
            assert name.startswith(f"{place}_")
    assert not wrong, "\n".join(wrong)


def test_the_headers_are_generated():
    assert list(outdated()) == [], "run python scripts/preset_headers.py"


def test_the_headers_written_by_hand():
    """Their commands name their own file and compose; they have the headings of the generated ones."""
    for path in (CONF / "experiment/demo.yaml", *sorted(CONF.glob("scale/*.yaml"))):
        comments = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
        assert re.findall(r"^# (\w+): ", comments, re.MULTILINE) == ["What", "Command", "Hardware", "Number"], path
        command = re.search(r"^# Command: +python -m geexp\.train (.*)$", comments, re.MULTILINE)
        assert command is not None, path
        assert f"{path.parent.name}={path.stem}" in command[1].split()
        config(*command[1].split())


def test_what_several_tables_and_figures_show_is_one_run():
    by_run: dict[str, set[str]] = {}
    for name in PRESETS:
        by_run.setdefault(run_folder(preset(name)), set()).add(name)
    assert sorted(sorted(names) for names in by_run.values() if len(names) > 1) == [
        ["figure2_baseline", "table1_baseline", "table2_baseline", "table6_baseline"],
        ["figure2_theta_global", "table1_all", "table2_theta"],
        ["figure2_theta_minus_e4", "table6_e4_avg"],
        ["figure2_theta_minus_global", "table2_theta_minus", "table6_global_avg"],
        ["table2_resnet101", "table3_baseline"],
    ]
    of_tables = [{name for name in names if name.startswith("table")} for names in by_run.values()]
    assert (sum(map(len, of_tables)), sum(map(bool, of_tables))) == (59, 54)  # rows, distinct trainings


def test_a_preset_can_be_overridden():
    c = config("experiment=table2_theta", "model=resnet101", "ge.extent=4", "schedule=fixed100", "optim.lr=0.2")
    assert (c.model.name, c.ge.variant, c.ge.extent, c.optim.lr) == ("resnet101", "theta", 4, 0.2)
    assert (c.schedule.milestones, c.data.name) == ([30, 60, 90], "imagenet")


# Scales

SIBLINGS = [
    ("table2_theta", "imagenet100", "imagenet"),
    ("table4_theta_e8", "imagenet10", "imagenet"),
    ("table5_resnet164_cifar100_se", "cifar_short", "cifar100"),
    ("table5_resnet110_cifar100_theta", "half", "cifar100"),
    ("figure6_theta", "smoke", "imagenet"),
    ("demo", "smoke", "fashion_mnist_mini"),
]


def test_a_scale_is_marked_in_identity_and_folder_and_keeps_network_and_optimiser():
    for name, scale, data in SIBLINGS:
        small, large = config(f"experiment={name}", f"scale={scale}"), identity(preset(name))
        assert run_folder(small).startswith(f"{data}-{scale}/{small.model.name}/")
        ours = identity(small)
        assert small.scale == ours["scale"] == scale
        assert "scale" not in large
        assert (ours["model"], ours["ge"]) == (large["model"], large["ge"])
        assert ours["schedule"]["name"] == large["schedule"]["name"]
        assert ours["optim"].keys() == large["optim"].keys()


def test_the_mark_stays_when_everything_else_is_set_back():
    protocol = asdict(preset("table2_theta"))
    undo = [f"data.{key}={protocol['data'][key]}" for key in ("num_classes", "image_size")]
    c = config("experiment=table2_theta", "scale=imagenet100", *undo, "data.keep_classes=null", "schedule.stretch=1")
    assert identity(c) == identity(preset("table2_theta")) | {"scale": "imagenet100"}
    assert run_folder(c).startswith("imagenet-imagenet100/")


def test_what_a_scale_makes_smaller():
    """As the headers of the scales say."""
    c = config("experiment=table2_theta", "scale=imagenet100")
    assert (c.data.keep_classes, c.data.num_classes, c.data.image_size, planned_epochs(c)) == (100, 100, 112, 30)
    assert "30 epochs" in (CONF / "scale/imagenet100.yaml").read_text()
    c = config("experiment=figure4_theta", "scale=imagenet10")
    assert (c.data.num_classes, c.data.image_size, stretched(c.schedule).milestones) == (10, 64, [1, 2, 3])
    c = config("experiment=table2_theta", "scale=imagenet10", "data.keep_classes=20")
    assert (c.data.num_classes, planned_epochs(c)) == (20, 9)
    assert "9 epochs" in (CONF / "scale/imagenet10.yaml").read_text()
    schedule = stretched(config("experiment=table5_resnet110_cifar10_se", "scale=cifar_short").schedule)
    assert (schedule.iterations, schedule.milestones, schedule.warmup) == (6_400, [3_200, 4_800], 40)
    assert "6,400 iterations" in (CONF / "scale/cifar_short.yaml").read_text()


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["experiment=table5_resnet110_cifar10_se", "scale=imagenet100"], ["data=cifar10", "scale=cifar_short"]),
        (
            ["experiment=table2_theta", "scale=cifar_short"],
            ["data=imagenet", "imagenet100 or imagenet10 or half or smoke"],
        ),
        (["scale=imagenet10"], ["data=fashion_mnist_mini", "scale=smoke"]),
        (
            ["experiment=table2_theta", "scale=imagenet100", "data.num_classes=1000"],
            ["data.num_classes=1000", "data.keep_classes=100"],
        ),
    ],
)
def test_a_scale_that_does_not_fit_is_refused_in_one_line(overrides, parts):
    with pytest.raises(ConfigError) as error:
        config(*overrides)
    assert [part for part in parts if part not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_every_scale_has_a_rule_for_its_data():
    """Without one, it would be accepted for any data set."""
    names = {path.stem: yaml.safe_load(path.read_text())["scale"] for path in CONF.glob("scale/*.yaml")}
    assert names == {name: name for name in (*SCALES, "smoke")}


def test_a_scale_on_the_command_line(run):
    none = run("train", "--cfg", "job", "experiment=null", "scale=null", "debug=null")
    assert none.returncode == 0, none.stderr
    assert yaml.safe_load(none.stdout)["scale"] is None
    unknown = run("train", "scale=imagenet1000")
    assert unknown.returncode == 2
    assert "scale=imagenet1000" in unknown.stderr
    assert "imagenet100 or imagenet10" in unknown.stderr
