"""``python -m geexp.analyze`` on trained runs: the files it writes, its pictures, its error messages."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from geexp.analysis.analyse import read_analysis
from geexp.config.errors import DataError
from geexp.report.page import write_page
from geexp.report.report import make_report
from tests.support.wandb_files import logged

PUBLISHED = Path(__file__).parents[2] / "outputs/published/demo"
TRAINED = ["schedule.epochs=1", "trainer.limit_train_batches=12", "logger=wandb"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, forked) -> dict[str, Path]:
    """A baseline and a GE-θ run that have learned a little, by variant."""
    folder = tmp_path_factory.mktemp("trained")
    for variant in ("none", "theta"):
        (done,) = forked.run(folder, "train", "experiment=demo", f"ge={variant}", *TRAINED, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
    return {path.parts[-4].split("-")[0]: path.parent for path in folder.glob("outputs/**/result.json")}


@pytest.fixture
def run(forked, tmp_path):
    """``run("analyze", …)``: the ended process of ``python -m geexp.analyze``."""
    return lambda entry, *arguments, **variables: forked.run(tmp_path, entry, *arguments, **variables)[0]


def analyse(run, *arguments: str, **variables: str) -> dict:
    done = run("analyze", *arguments, "format=json", **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def looks_like_a_picture(path: Path) -> bool:
    if path.suffix == ".svg":
        return "</svg>" in path.read_text()
    with Image.open(path) as image:
        return min(image.size) > 300 and len(image.convert("RGB").getcolors(2**24) or []) > 20


@pytest.mark.parametrize(
    ("analysis", "tables"),
    [
        ("selectivity", {"features", "blocks"}),
        ("pruning", {"curves"}),
        ("receptive_field", {"field", "areas"}),
        ("gates", {"histogram", "channels"}),
    ],
)
def test_two_networks_side_by_side(runs, run, tmp_path, analysis, tables):
    against = [] if analysis == "gates" else [f"against={runs['none']}"]
    out = tmp_path / "out"
    made = analyse(run, f"analysis={analysis}", f"run={runs['theta']}", *against, "images=100", f"out={out}")
    labels = ["GE-θ", "baseline"][: 1 + len(against)]
    assert [network["label"] for network in made["networks"]] == labels
    assert {network["images"] for network in made["networks"]} == {100}
    assert made["tables"].keys() == tables
    for name, rows in made["tables"].items():
        assert {row["network"] for row in rows} == set(labels)
        assert len(pd.read_csv(out / f"{analysis}_{name}.csv")) == len(rows)
    assert all(looks_like_a_picture(Path(path)) for path in made["pictures"])
    assert {path.suffix for path in out.iterdir()} == {".csv", ".json", ".svg", ".png"}

    # The same picture, from the data alone.
    before = (out / f"{analysis}.svg").read_bytes()
    (out / f"{analysis}.svg").unlink()
    moved = runs["theta"].rename(tmp_path / "moved")
    try:
        again = analyse(run, f"analysis={analysis}", f"run={runs['theta']}", f"out={out}", "redraw=true")
    finally:
        moved.rename(runs["theta"])
    assert again["tables"].keys() == tables
    assert (out / f"{analysis}.svg").read_bytes() == before


def test_pruning_nothing_is_the_networks_own_error_to_the_last_image(runs, run):
    recorded = json.loads(run("evaluate", f"run={runs['theta']}", "format=json").stdout)["measured"]
    made = analyse(run, "analysis=pruning", f"run={runs['theta']}", "blocks=[conv4_1]", "ratios=[0]")
    rows = made["tables"]["curves"]
    assert {row["images"] - row["correct"] for row in rows} == {recorded["val/top1_wrong"]}
    assert {row["images"] for row in rows} == {recorded["val/images"]}


def test_training_images_come_once_and_without_augmentation(runs, run):
    made = analyse(run, "analysis=selectivity", f"run={runs['none']}", "split=train", "stage=3")
    (block,) = made["tables"]["blocks"]
    assert (block["block"], block["images"], block["classes"]) == ("conv3_1", 10_000, 10)


def test_two_processes_give_what_one_gives(runs, run, forked, tmp_path):
    one = analyse(run, "analysis=selectivity", f"run={runs['theta']}", "images=301")
    arguments = ["analysis=selectivity", f"run={runs['theta']}", "images=301", "devices=2", "format=json"]
    first, second = forked.start(tmp_path, "analyze", *arguments, "accelerator=cpu", ranks=2).end()
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    ours, alone = (pd.DataFrame(made["tables"]["features"]) for made in (json.loads(first.stdout), one))
    pd.testing.assert_frame_equal(ours, alone, rtol=1e-4)  # batches of another size are rounded otherwise


def test_the_picture_goes_to_the_runs_wandb_when_asked(runs, run):
    done = run("analyze", "analysis=gates", f"run={runs['theta']}", "images=64", "wandb=true", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert "wandb sync" in done.stderr
    training, picture = logged(runs["theta"])
    assert picture.id == training.id
    assert any("analysis/gates" in row for row in picture.history)


def test_the_page_shows_what_lies_beside_the_runs(runs, run, tmp_path):
    made = tmp_path / "runs"
    shutil.copytree(runs["theta"], made / "theta", ignore=shutil.ignore_patterns("wandb", "analysis"))
    analyse(run, "analysis=gates", f"run={made / 'theta'}", "images=64")
    write_page(make_report(made, []), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert 'id="analyses"' in text
    assert "Gates: ResNet-8, fashion_mnist_mini. GE-θ (epoch 1); 64 validation images" in text.replace("\n", "")
    (made / "theta/analysis/gates.json").write_text("{")
    write_page(make_report(made, []), tmp_path / "page.html")
    assert "Gates: ResNet-8" not in (tmp_path / "page.html").read_text()


def test_curves_of_whatever_runs_there_are(runs, run, tmp_path):
    outputs = runs["theta"].parents[4]
    made = analyse(run, "analysis=curves", f"run={outputs}", f"out={tmp_path / 'out'}")
    assert {row["network"] for row in made["tables"]["curves"]} == {"baseline", "GE-θ"}
    assert [Path(path).name for path in made["pictures"]] == ["curves.svg", "curves.png"]
    assert made["tables"]["extents"] == []  # one extent is no curve
    again = run("analyze", "analysis=curves", f"run={outputs}", f"out={tmp_path / 'out'}", "redraw=true")
    assert again.returncode == 0, again.stderr
    assert "GE-θ" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["analysis=pruning", "run={none}"], ["holds no Gather-Excite"]),
        (["analysis=gates", "run={none}"], ["no block holds Gather-Excite"]),
        (["analysis=pruning", "run={theta}", "blocks=[conv9_1]"], ["blocks=['conv9_1']", "conv4_1"]),
        (["analysis=pruning", "run={theta}", "blocks=[conv5_1]"], ["conv5_1", "conv2_1, conv3_1, conv4_1"]),
        (["analysis=selectivity", "run={theta}", "stage=5"], ["stage=5", "conv4_1"]),
        (["analysis=selectivity", "run={theta}", "ratios=[0.5]"], ["ratios=[0.5]", "only of pruning"]),
        (["analysis=selectivity", "run=nowhere"], ["run=nowhere", "no such folder"]),
        (["analysis=selectivity", "run={empty}"], ["best.ckpt", "no such file"]),
        (["analysis=curves", "run={empty}"], ["no finished run"]),
        (["analysis=selectivity"], ["run=<a run's folder>"]),
        (["analysis=selectivityy", "run={theta}"], ["Did you mean selectivity?"]),
        (["analysis=gates", "run={theta}", "redraw=true", "out={empty}"], ["gates.json", "Leave redraw out"]),
        (["analysis=gates", "run={theta}", "devices=2"], ["torchrun", "-m geexp.analyze"]),
        (["run={theta}"], ["analysis"]),
    ],
)
def test_mistakes_are_explained_in_one_message(runs, run, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    places = {"empty": str(tmp_path / "empty"), **{name: str(folder) for name, folder in runs.items()}}
    done = run("analyze", *(argument.format(**places) for argument in arguments))
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout == ""


def test_the_published_pictures_are_drawn_again_from_their_data(tmp_path):
    kept = sorted(PUBLISHED.glob("*/seed0/analysis/*.json"))
    assert {path.stem for path in kept} == {"selectivity", "pruning", "receptive_field", "gates"}
    for path in kept:
        analysis = read_analysis(path.parent, path.stem)
        pictures = import_module(f"geexp.analysis.{path.stem}").draw(analysis, tmp_path / path.stem)
        assert all(looks_like_a_picture(picture) for picture in pictures)


def test_damaged_data_are_refused(tmp_path):
    (table, *_) = PUBLISHED.glob("*/seed0/analysis/gates_histogram.csv")
    folder = shutil.copytree(table.parent, tmp_path / "analysis")
    (folder / table.name).write_text(table.read_text().replace("GE-θ", "SE"))
    with pytest.raises(DataError, match=r"gates\.json.* unknown networks: SE"):
        read_analysis(folder, "gates")
