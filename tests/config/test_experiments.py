"""The presets: one for every row and curve of the paper, headers that say what is so, and scales that are marked."""

import re
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import pytest
import yaml
from geexp.config.rules import SCALES
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from geexp.config.compose import validated
from geexp.config.errors import ConfigError
from geexp.config.protocol import planned_epochs, stretched
from geexp.config.schema import GatherExciteConfig, ModelConfig, TrainConfig
from geexp.registry import config_directory
from geexp.report.complexity_report import count_network
from geexp.report.numbers import network_of, paper, table_rows
from geexp.runs.identity import identity, run_folder

CONF = Path(config_directory())
PRESETS = sorted(path.stem for path in CONF.glob("experiment/*.yaml") if path.stem not in ("demo", "demo_detection"))
SCALE_FILES = sorted(path.stem for path in CONF.glob("scale/*.yaml"))

# The estimate of the headers: 6 FLOPs a multiply-accumulate are one forward pass and a backward pass twice as long.
FLOPS_PER_MAC, FLOPS_PER_SECOND = 6, 50e12
# What small networks do not exceed: their images have to be decoded, and their layers do not fill a GPU.
IMAGES_PER_SECOND = 3_000
TRAINING_IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000}

IMAGENET = ("data=imagenet", "schedule=plateau", "optim=paper")
SHUFFLENET = ("data=imagenet", "schedule=shufflenet400", "optim=paper")
FIXED = ("data=imagenet", "schedule=fixed100", "optim=paper")
COCO = ("model=resnet50", "ge=none", "data=coco2014", "detector=c4", "schedule=coco_faster_rcnn", "optim=coco")
PREACT = ("schedule=preact_cifar", "optim=cifar")
WRN = ("schedule=wrn_cifar", "optim=wrn")


@cache
def config(*overrides: str) -> TrainConfig:
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validated(TrainConfig, compose("train", overrides=list(overrides)))


def preset(name: str) -> TrainConfig:
    return config(f"experiment={name}")


@cache
def run_of(name: str) -> str:
    return run_folder(preset(name))


@dataclass(frozen=True, eq=False)
class Row:
    """A row or a curve of the paper: where, under which name, of which network, trained how; and what is printed."""

    where: str
    label: str
    model: str
    ge: GatherExciteConfig
    protocol: tuple[str, ...] = IMAGENET
    printed: str | None = None

    @property
    def prefix(self) -> str:
        return self.where.lower().replace(" ", "") + "_"

    @cached_property
    def run(self) -> str:
        """The folder of its run, which is named by all that determines the result."""
        return run_folder(replace(config(*self.protocol), model=ModelConfig(self.model), ge=self.ge))


def two_errors(row: dict) -> str:
    return f"top-1 / top-5 error {row['top1']:.2f} / {row['top5']:.2f} % on the validation images, one centre crop each"


def rows_of_tables() -> list[Row]:
    rows = []
    for number in (1, 2, 3, 4, 6):
        for row in table_rows(number):
            network = network_of(row)
            model = network.pop("name")
            ge = GatherExciteConfig(network.pop("ge"), **network)
            protocol = SHUFFLENET if number == 4 else IMAGENET
            rows.append(Row(f"Table {number}", row["label"], model, ge, protocol, two_errors(row)))
    for row in table_rows(5):
        for model in paper()["table5"]["columns"]:
            how = WRN if model == "wrn16_8" else PREACT
            for data, error in row[model].items():
                ge = GatherExciteConfig(row["ge"])
                rows.append(
                    Row("Table 5", row["label"], model, ge, (f"data={data}", *how), f"test error {error:.2f} %")
                )
    return rows


def curves_of_figures() -> list[Row]:
    """No figure prints a number; a point of Figure 2 that is also a row of a table has that row's."""
    rows = [Row("Figure 2", "baseline", "resnet50", GatherExciteConfig("none"))]
    for variant, label in (("theta_minus", "GE-θ⁻"), ("theta", "GE-θ")):
        for extent in (2, 4, 8, "global"):
            of_extent = "global" if extent == "global" else f"E{extent}"
            rows.append(Row("Figure 2", f"{label} ({of_extent})", "resnet50", GatherExciteConfig(variant, extent)))
    for figure, model in (("Figure 4", "resnet50"), ("Figure 6", "shufflenet_g3")):
        for variant, label in (("none", "baseline"), ("theta", "GE-θ")):
            rows.append(Row(figure, label, model, GatherExciteConfig(variant), FIXED))
    return rows


def detectors() -> list[Row]:
    rows = []
    for row, backbone in zip(paper()["detection"]["rows"], ("none", "theta-e8"), strict=True):
        ge = GatherExciteConfig(row["ge"], row["extent"] or "global")
        trained = f"backbone_checkpoint=outputs/imagenet/resnet50/{backbone}/plateau/seed0-*/checkpoints/last.ckpt"
        printed = f"mAP {row['map']} % on the images of val2014"
        rows.append(Row("COCO", row["label"], row["model"], ge, (*COCO, trained), printed))
    return rows


ROWS = [*rows_of_tables(), *curves_of_figures(), *detectors()]
ROW_IDS = [f"{row.where}, {row.label}, {row.model}, {row.protocol[0]}" for row in ROWS]


def presets_of(row: Row) -> list[str]:
    return [name for name in PRESETS if name.startswith(row.prefix) and run_of(name) == row.run]


def header(path: Path) -> dict[str, str]:
    """The comments at the top of a file by their headings, each on one line."""
    comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    _, *parts = re.split(r" ?\b(What|Command|Hardware|Number): +", " ".join(comments))
    return dict(zip(parts[::2], parts[1::2], strict=True))


@cache
def macs(model: str, variant: str, extent: int | str, stages: tuple[int, ...] | None, pool: str) -> int:
    """At home: a hundred classes instead of ten do not show in two decimals of a GMAC."""
    network = {"ge": "none"} if variant == "none" else {"ge": variant, "extent": extent, "stages": stages, "pool": pool}
    return count_network(name=model, **network).total.macs


def number_to_reach(row: Row) -> str:
    if row.printed is not None:
        return row.printed
    for other in ROWS:
        if other.printed is not None and other.run == row.run:
            return f"{other.printed} ({other.where})"
    return f"shown in {row.where}, not printed"


def hours(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def hardware(config: TrainConfig) -> str:
    schedule, ge = config.schedule, config.ge
    if schedule.iterations is None:
        said = f"{schedule.epochs} epochs of {TRAINING_IMAGES[config.data.name]:,} images"
        images = schedule.epochs * TRAINING_IMAGES[config.data.name]
    else:
        said = f"{schedule.iterations:,} iterations of {config.optim.batch_size} images"
        images = schedule.iterations * config.optim.batch_size
    if config.detector.layout == "none":
        count = macs(config.model.name, ge.variant, ge.extent, tuple(ge.stages) if ge.stages else None, ge.pool)
    else:
        # Without GE: stages 1-4 of 3.858 - 0.732 GMACs on 600x800 pixels, conv5 on 128 regions.
        count = (3.126 * 600 * 800 / 224**2 + 128 * 0.732) * 1e9
    arithmetic = images * count * FLOPS_PER_MAC / FLOPS_PER_SECOND / 3600
    at_most = images / IMAGES_PER_SECOND / 3600
    gmacs = f"{count / 1e9:.1f}" if count > 1e11 else f"{count / 1e9:.2f}"
    work = f"{FLOPS_PER_MAC} FLOPs for each of {gmacs} GMACs at {FLOPS_PER_SECOND / 1e12:.0f} TFLOP/s"
    text = f"about {hours(max(arithmetic, at_most))} GPU-hours, estimated and not measured: {said}"
    if arithmetic >= at_most:
        text += f", {work}"
    else:
        text += f" at {IMAGES_PER_SECOND:,} images/s ({work} alone: {hours(arithmetic)})"
    return text + ("; less if the fourth plateau comes earlier" if schedule.kind == "plateau" else "")


@pytest.mark.parametrize("row", ROWS, ids=ROW_IDS)
def test_every_row_has_one_preset_with_its_number(row):
    (name,) = presets_of(row)
    words = header(CONF / f"experiment/{name}.yaml")
    assert words["What"].startswith(f"{row.where}, {row.label}: ")
    assert words["Number"] == number_to_reach(row)


def test_every_preset_is_a_row():
    assert [name for name in PRESETS if not any(name in presets_of(row) for row in ROWS)] == []
    assert len(PRESETS) == len(ROWS) == 5 + 6 + 6 + 7 + 30 + 5 + 9 + 2 + 2 + 2


def test_the_paper_has_no_other_tables():
    assert sorted(key for key in paper() if key.startswith("table")) == [f"table{n}" for n in range(1, 7)]


@pytest.mark.parametrize("name", PRESETS)
def test_command_and_hardware(name):
    words = header(CONF / f"experiment/{name}.yaml")
    root = {"imagenet": "/data/imagenet", "coco2014": "/data/coco"}.get(preset(name).data.name, "/data")
    assert words["Command"] == f"python -m geexp.train experiment={name} data.root={root} trainer=gpu"
    assert words["Hardware"] == hardware(preset(name))


@pytest.mark.parametrize(
    "path", [CONF / "experiment/demo.yaml", *sorted(CONF.glob("scale/*.yaml"))], ids=lambda p: p.stem
)
def test_the_other_commands(path):
    assert {"What", "Command", "Hardware", "Number"} == header(path).keys()
    command = header(path)["Command"].split()
    assert command[:3] == ["python", "-m", "geexp.train"]
    assert f"{path.parent.name}={path.stem}" in command[3:]
    config(*command[3:])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_by_itself(name):
    """It chooses in every group that makes the result, and leaves to the user what does not: devices, logger, feed."""
    text = yaml.safe_load((CONF / f"experiment/{name}.yaml").read_text())
    chosen = {key.removeprefix("override /") for choice in text["defaults"] for key in choice}
    needed = {"model", "ge", "data", "schedule", "optim"}
    if preset(name).ge.variant != "none":
        needed |= {"extent"}
    detector = preset(name).detector.layout != "none"
    assert needed | ({"detector"} if detector else set()) <= chosen <= needed | {"placement", "detector"}
    assert text.keys() <= {"defaults", "ge"} | ({"backbone_checkpoint"} if detector else set())


@pytest.mark.parametrize(
    "names",
    [
        ("table1_baseline", "table2_baseline", "table6_baseline", "figure2_baseline"),
        ("table1_all", "table2_theta", "figure2_theta_global"),
        ("table2_resnet101", "table3_baseline"),
        ("table2_theta_minus", "table6_global_avg", "figure2_theta_minus_global"),
        ("table6_e4_avg", "figure2_theta_minus_e4"),
    ],
    ids=lambda names: names[0],
)
def test_what_tables_share_is_one_run(names):
    assert all(identity(preset(name)) == identity(preset(names[0])) for name in names)
    assert len({run_of(name) for name in names}) == 1


def test_nothing_else_is_shared():
    """The 14 presets above are five runs."""
    assert len({run_of(name) for name in PRESETS}) == len(PRESETS) - 14 + 5


def test_no_preset_is_scaled():
    assert {preset(name).scale for name in PRESETS} == {None}
    assert {preset(name).schedule.stretch for name in PRESETS} == {1.0}
    assert {preset(name).data.keep_classes for name in PRESETS} == {None}


# Scales


def scaled(name: str, scale: str, *overrides: str) -> TrainConfig:
    return config(f"experiment={name}", f"scale={scale}", *overrides)


SIBLINGS = [
    ("table2_theta", "imagenet100", "imagenet"),
    ("table4_theta_e8", "imagenet10", "imagenet"),
    ("table5_resnet164_cifar100_se", "cifar_short", "cifar100"),
    ("table5_wrn16_8_cifar10_theta_plus", "smoke", "cifar10"),
    ("figure6_theta", "smoke", "imagenet"),
    ("demo", "smoke", "fashion_mnist_mini"),
]


@pytest.mark.parametrize(("name", "scale", "data"), SIBLINGS)
def test_a_scale_is_marked_in_identity_and_folder(name, scale, data):
    c = scaled(name, scale)
    assert c.scale == identity(c)["scale"] == scale
    assert run_folder(c).startswith(f"{data}-{scale}/{c.model.name}/")
    assert "scale" not in identity(preset(name))


def test_the_mark_stays_when_everything_else_is_set_back():
    protocol = asdict(preset("table2_theta"))
    undo = [f"data.{key}={protocol['data'][key]}" for key in ("num_classes", "image_size")]
    c = scaled("table2_theta", "imagenet100", *undo, "data.keep_classes=null", "schedule.stretch=1")
    assert identity(c) == identity(preset("table2_theta")) | {"scale": "imagenet100"}
    assert run_folder(c).startswith("imagenet-imagenet100/")


def test_a_scale_keeps_network_and_optimiser():
    for name, scale, _ in SIBLINGS[:3]:
        small, large = identity(scaled(name, scale)), identity(preset(name))
        assert (small["model"], small["ge"]) == (large["model"], large["ge"])
        assert small["optim"].keys() == large["optim"].keys()
        assert small["schedule"]["name"] == large["schedule"]["name"]


def test_what_a_scale_makes_smaller():
    c = scaled("table2_theta", "imagenet100")
    assert (c.data.keep_classes, c.data.num_classes, c.data.image_size, planned_epochs(c)) == (100, 100, 112, 30)
    c = scaled("figure4_theta", "imagenet10")
    assert (c.data.num_classes, c.data.image_size, stretched(c.schedule).milestones) == (10, 64, [1, 2, 3])
    c = scaled("table5_resnet110_cifar10_se", "cifar_short")
    assert stretched(c.schedule).iterations == 6_400
    assert stretched(c.schedule).milestones == [3_200, 4_800]
    assert stretched(c.schedule).warmup == 40
    assert scaled("table2_theta", "imagenet10", "data.keep_classes=20").data.num_classes == 20


def test_the_headers_of_scales_say_how_long():
    for name, scale, _ in SIBLINGS[:3]:
        schedule = stretched(scaled("table2_theta" if scale != "cifar_short" else name, scale).schedule)
        said = f"{schedule.iterations:,} iterations" if schedule.iterations else f"{schedule.epochs} epochs"
        assert said in header(CONF / f"scale/{scale}.yaml")["Hardware"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment=table5_resnet110_cifar10_se", "scale=imagenet100"],
            "scale=imagenet100: is made for data=imagenet, and the configuration says data=cifar10. "
            "For that there is scale=cifar_short or smoke.",
        ),
        (
            ["experiment=table2_theta", "scale=cifar_short"],
            "scale=cifar_short: is made for data=cifar10 or cifar100, and the configuration says data=imagenet. "
            "For that there is scale=imagenet100 or imagenet10 or smoke.",
        ),
        (["scale=imagenet10"], "For that there is scale=smoke."),
        (
            ["experiment=table2_theta", "scale=imagenet100", "data.num_classes=1000"],
            "data.num_classes=1000: data.keep_classes=100 leaves another number.",
        ),
    ],
)
def test_a_scale_that_does_not_fit_is_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError) as error:
        config(*overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_scale_is_known():
    """A scale of which no rule says what it is for would be taken for any data set."""
    assert {*SCALES, "smoke"} == set(SCALE_FILES)
    for scale in SCALE_FILES:
        assert yaml.safe_load((CONF / f"scale/{scale}.yaml").read_text())["scale"] == scale


def test_no_scale_can_be_said_on_the_command_line(run):
    done = run("train", "--cfg", "job", "experiment=null", "scale=null", "debug=null")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["scale"] is None


def test_an_unknown_scale_is_answered_with_those_there_are(run):
    done = run("train", "scale=imagenet1000")
    assert done.returncode == 2
    assert "scale=imagenet1000: not allowed. Did you mean imagenet100 or imagenet10?" in done.stderr
