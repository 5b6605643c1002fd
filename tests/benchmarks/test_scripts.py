"""Each benchmark once, at the smallest size that measures something, up to its JSON."""

import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.conftest import SOURCES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``run("operators", …)``: what the script prints; it runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(SOURCES))  # for the processes that it starts
    threads = torch.get_num_threads()

    def benchmark(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        import_module(name).main()
        return capsys.readouterr().out

    yield benchmark
    torch.set_num_threads(threads)


@pytest.fixture
def measured(run, tmp_path):
    """The JSON document of a benchmark that has run, its command, hardware and figures checked."""

    def measure(name, *arguments):
        printed = run(name, *arguments)
        document = json.loads((tmp_path / f"outputs/benchmarks/{name}.json").read_text())
        assert document["what"] == name
        assert document["command"].split()[2:] == [*arguments]
        assert document["date"]
        assert {"versions", "processor", "commit", "gpu"} <= document["environment"].keys()
        for row in document["rows"]:
            assert row["contender"] in printed
            for seconds in row["seconds"].values():
                assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
        assert not [*tmp_path.glob("geexp*")]  # temporary folders
        return document

    return measure


def contenders(document):
    found = {}
    for row in document["rows"]:
        found.setdefault(row["case"], []).append(row["contender"])
    return found


OPERATORS = ["--shapes", "8x8x16", "--rounds", "1", "--batch-size", "2"]
STEPS = ["--model", "resnet8", "--image-size", "32", "--rounds", "1", "--batch-size", "2"]


def test_operators(measured):
    chosen = ["--variants", "theta", "--extents", "2", "global", "--layouts", "contiguous"]
    document = measured("operators", *OPERATORS, *chosen)
    assert contenders(document) == {
        "theta e=2, 8x8x16, contiguous, float32": ["copy", "auto", "reference", "timm", "bayeswatch"],
        "theta global, 8x8x16, contiguous, float32": ["copy", "auto", "reference", "convolution", "bayeswatch"],
        "BN + theta global + sum + ReLU, 8x8x16, contiguous, float32": ["copy", "plain", "timm", "unfused"],
    }
    assert all(row["saved"] > 0 for row in document["rows"])
    assert document["config"]["extents"] == [2, "global"]
    assert document["targets"] == []  # none at this shape


@pytest.mark.slow  # compiles the fused tail
def test_operators_with_targets(measured):
    arguments = ["--shapes", "56x56x256", "--rounds", "1", "--batch-size", "2", "--layouts", "contiguous"]
    document = measured("operators", *arguments, "--variants", "theta_minus", "--extents", "global")
    targets = {(one["contender"], one["name"]) for one in document["targets"]}
    assert {("auto", "saved, auto / copy"), ("fused", "forward_backward, timm / fused")} <= targets


def test_steps(measured):
    document = measured("steps", *STEPS, "--variants", "theta", "--implementations", "reference")
    assert contenders(document) == {
        "resnet8, theta global, channels_last, 32-true": ["plain", "reference", "timm"],
    }
    plain, reference, _ = document["rows"]
    assert reference["saved"] > plain["saved"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--compile"], ["--precision", "bf16-mixed"]])
def test_compiled_and_half_precision_steps(measured, arguments):
    measured("steps", *STEPS, "--variants", "se", *arguments)


@pytest.mark.slow
def test_trainer(measured):
    document = measured("trainer", "--model", "resnet8", "--batch-size", "8", "--rounds", "1")
    assert contenders(document) == {"resnet8, batch 8": ["bare loop", "geexp.train"]}


@pytest.mark.slow
def test_startup(measured):
    document = measured("startup", "--entries", "train", "--rounds", "1")
    shown = ["train --help", "train --cfg job"]
    assert contenders(document) == {"start-up": ["import torch", "first step", *shown]}
    assert [one["contender"] for one in document["targets"]] == shown


def test_feeds(measured):
    document = measured("feeds", "--images", "8", "--batch-size", "4", "--rounds", "1", "--workers", "1")
    found = contenders(document)
    assert {"decode", "train", "eval", "small"} == found.keys()
    assert {"reference", "folder", "folder, threads", "folder, workers", "pack raw"} <= {*found["train"]}
    measured_targets = {(one["contender"], one["case"]) for one in document["targets"]}
    assert {("folder", "train"), ("pack jpeg", "train"), ("resident", "small")} <= measured_targets
    pixels = [one for one in document["targets"] if one["name"] == "pixels"]
    assert len(pixels) >= 5
    assert all(one["met"] for one in pixels)


@pytest.mark.slow
def test_feeds_of_given_images(measured, run, tmp_path):
    printed = run("photographs", "photos", "--classes", "2", "--train", "9", "--val", "4")
    assert "data=imagenet data.root=photos data.num_classes=2" in printed
    arguments = ["--root", "photos", "--images", "4", "--batch-size", "2", "--rounds", "1"]
    assert measured("feeds", *arguments)["title"] == "Feeds on 4 + 4 images of photos"
    assert len([*(tmp_path / "photos").rglob("*.JPEG")]) == 13


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("operators", ["--extents", "3"], "3"),
        ("operators", ["--shapes", "8x8"], "8x8"),
        ("operators", ["--batch-size", "1"], "--batch-size 1"),
        ("operators", ["--device", "cuda"], "use --device cpu"),
        ("steps", ["--rounds", "0"], "--rounds"),
        ("feeds", ["--images", "8"], "--batch-size 64"),
        ("feeds", ["--root", "nowhere"], "photographs.py"),
        ("photographs", [str(ROOT)], "not empty"),
    ],
)
def test_usage_errors(name, arguments, expected, run, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        run(name, *arguments)
    assert error.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "arguments"), [("operators", OPERATORS), ("steps", STEPS)])
def test_on_a_gpu(measured, name, arguments):
    document = measured(name, *arguments, "--device", "cuda")
    assert document["environment"]["gpu"]
    assert all(row["peak"] > 0 for row in document["rows"] if row["contender"] != "copy")
