"""The benchmarks: every kind once on tiny shapes, and every mistake with its one message."""

import json
import re
from dataclasses import replace
from shlex import quote

import pytest
import torch
from geexp.config.benchmark import OperatorSettings, StepSettings, settings_of

from geexp.benchmarks import operators, steps
from geexp.benchmarks.interleaved import clock_for
from geexp.benchmarks.operator_cases import operator_cases, operator_targets
from geexp.benchmarks.report import as_document
from geexp.benchmarks.step_cases import step_case, step_pairs, step_targets
from geexp.config.compose import validated
from geexp.config.errors import ConfigError
from geexp.config.schema import BenchmarkConfig, ModelConfig
from tests.config.test_entry_points import probe

SHARED = {"what", "title", "date", "command", "config", "environment", "remarks", "rows", "targets"}
TINY_OPERATORS = OperatorSettings(rounds=1, batch_size=2, shapes=["8x8x16"], layouts=["contiguous"])
TINY_STEP = StepSettings(rounds=1, batch_size=2, model=ModelConfig("resnet8"))


@pytest.fixture
def here(monkeypatch):
    """In this process, whose threads and memory stay as they are."""

    def clock(work):
        work()
        return 1.0

    for module in (operators, steps):
        monkeypatch.setattr(module, "clock_for", lambda _device: clock)


def check(document):
    assert set(document) == SHARED
    assert {"versions", "processor", "commit", "processors"} <= document["environment"].keys()
    for row in document["rows"]:
        for seconds in row["seconds"].values():
            assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
    assert json.loads(json.dumps(document)) == document


@pytest.mark.usefixtures("here")
def test_operators():
    settings = replace(TINY_OPERATORS, variants=["theta", "se"], extents=[2, "global"])
    document = as_document(operators.benchmark_operators(settings), "operator", settings)
    check(document)
    contenders = {}
    for row in document["rows"]:
        contenders.setdefault(row["case"], []).append(row["contender"])
        assert row["seconds"].keys() == {"forward", "forward_backward"}
        assert row["saved"] > 0
        assert row["peak"] > 0
    finite = ["copy", "auto", "reference", "timm", "bayeswatch"]
    at_large = ["copy", "auto", "reference", "convolution", "bayeswatch"]
    tail = ["copy", "plain", "timm", "unfused"]
    of = "8x8x16, contiguous, float32"
    assert contenders == {
        f"theta e=2, {of}": finite,
        f"theta global, {of}": at_large,
        f"se e=2, {of}": finite,
        f"se global, {of}": finite,
        f"BN + theta global + sum + ReLU, {of}": tail,
        f"BN + se global + sum + ReLU, {of}": tail,
    }
    assert document["config"]["batch_size"] == 2
    assert document["targets"] == []  # of these shapes nothing is demanded


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps(precision):
    settings = replace(TINY_STEP, variants=["theta"], implementations=["reference"], precision=precision)
    document = as_document(steps.benchmark_steps(settings), "step", settings)
    check(document)
    names = [(row["case"], row["contender"]) for row in document["rows"]]
    case = f"resnet8, theta global, channels_last, {precision}"
    assert names == [(case, name) for name in ("plain", "reference", "timm")]
    plain, reference, _ = document["rows"]
    assert reference["saved"] > plain["saved"]
    assert reference["peak"] > plain["peak"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("what=step model=resnet8 rounds=1 batch_size=2 variants=[se] compile=true", "of resnet8, compiled, batch 2"),
        ("what=operator shapes=[8x8x16] rounds=1 batch_size=2 implementations=[auto,fused]", "8x8x16, channels_last"),
        ("what=trainer model=resnet8 rounds=1 batch_size=8", "resnet8, batch 8"),
        ("what=operator shapes=[8x8x16] rounds=1 batch_size=2 dtypes=[bfloat16]", "BN + theta_minus global"),
    ],
)
def test_commands(run, tmp_path, arguments, shown):
    done = run("benchmark", *arguments.split())
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    what = arguments.split()[0].partition("=")[2]
    written = tmp_path / f"outputs/benchmarks/{what}.json"
    assert f"written to {written}" in done.stderr
    document = json.loads(written.read_text())
    check(document)
    assert document["command"] == f"python -m geexp.benchmark {' '.join(map(quote, arguments.split()))}"


@pytest.mark.slow
def test_startup(run, tmp_path):
    done = run("benchmark", "what=startup", "rounds=1", "format=json", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check(document)
    rows = {row["contender"]: row for row in document["rows"]}
    assert {"import torch", "train --help", "benchmark --cfg job", "first step"} <= rows.keys()
    for name in ("train --help", "benchmark --cfg job"):
        assert rows[name]["modules"] < rows["import torch"]["modules"] < rows["first step"]["modules"]
    assert not list(tmp_path.glob("geexp*"))


def test_every_target_is_measured_by_default():
    for device in ("cpu", "cuda"):
        operators = settings_of(BenchmarkConfig("operator", device=device, out=""))
        steps = settings_of(BenchmarkConfig("step", device=device, layouts=["contiguous", "channels_last"], out=""))
        assert isinstance(operators, OperatorSettings)
        assert isinstance(steps, StepSettings)
        assert {target.case for target in operator_targets(device)} <= {str(case) for case in operator_cases(operators)}
        measured = {
            step_case(steps.model.name, variant, extent, layout, steps.precision)
            for variant, extent in step_pairs(steps)
            for layout in steps.layouts
        }
        assert {target.case for target in step_targets(device)} <= measured


def test_what_is_usual_on_a_gpu_gives_way_to_what_is_said():
    config = validated(BenchmarkConfig, {"what": "operator", "device": "cuda", "rounds": 2, "out": ""})
    settings = settings_of(config)
    assert isinstance(settings, OperatorSettings)
    assert (settings.batch_size, settings.dtypes, settings.rounds) == (256, ["bfloat16"], 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"what": "operator", "device": "tpu"}, "device=tpu: not allowed. Did you mean cpu? Allowed: cpu, cuda."),
        ({"what": "operator", "variants": ["thet"]}, "variants=thet: not allowed. Did you mean theta?"),
        ({"what": "operator", "variants": ["se", "se"]}, "variants=['se', 'se']: names one of them twice."),
        ({"what": "operator", "variants": []}, "variants=[]: nothing is left to measure; null means the usual ones."),
        ({"what": "operator", "extents": [3]}, "extents=3: not allowed. Allowed: 2, 4, 8, global."),
        ({"what": "operator", "extents": ["16"]}, "extents=16: a map of shapes=7x7x2048 cannot hold it"),
        ({"what": "operator", "shapes": ["8x8"]}, "shapes=8x8: height, width and channels belong there"),
        ({"what": "operator", "shapes": ["8x8x8"]}, "shapes=8x8x8: theta_plus and se shrink to C/16 channels"),
        ({"what": "operator", "layouts": ["nhwc"]}, "layouts=nhwc: not allowed. Allowed: contiguous, channels_last."),
        ({"what": "operator", "dtypes": ["float16"]}, "dtypes=float16: not allowed."),
        ({"what": "operator", "implementations": ["fast"]}, "Allowed: auto, reference, fused."),
        ({"what": "operator", "batch_size": 1}, "batch_size=1: batch normalisation of a gathered 1x1 map needs two"),
        ({"what": "operator", "rounds": 0}, "rounds=0: must be at least 1"),
        ({"what": "operator", "model": {"name": "resnet8"}}, "model=resnet8: what=operator has no use for it, only"),
        ({"what": "step", "shapes": ["8x8x16"]}, "what=step has no use for it, only what=operator."),
        ({"what": "step", "precision": "half"}, "precision=half: not allowed. Allowed: 32-true, bf16-mixed."),
        ({"what": "startup", "device": "cuda"}, "what=startup has no use for it, only what=operator or what=step."),
        ({"device": "cpu"}, "device=cpu: what=feed has no use for it, only what=operator or what=step."),
        ({"what": "operator", "extents": "many"}, "extents: a list"),
    ],
)
def test_mistakes(values, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        validated(BenchmarkConfig, {"out": "there.json", **values})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("what=operator extents=[3]", "extents=3: not allowed. Allowed: 2, 4, 8, global."),
        ("what=step model=resnet51", "model=resnet51: not allowed. Did you mean"),
        ("what=step layout=contiguous", "layout: there is no such key. Did you mean layouts"),
    ],
)
def test_mistakes_on_the_command_line(run, arguments, expected):
    done = run("benchmark", *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device=cuda: this machine has no GPU that torch can use"):
        clock_for("cuda")


@pytest.mark.parametrize("flag", ["what=operator --cfg=job", "what=step rounds=0"])
def test_nothing_heavy_is_imported_before_measuring(flag, tmp_path):
    assert probe("benchmark", *flag.split(), cwd=tmp_path).strip().endswith("LOADED []")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "arguments",
    [
        "what=operator shapes=[8x8x16] batch_size=8 rounds=2",
        "what=step model=resnet8 batch_size=8 rounds=2",
    ],
)
def test_commands_on_a_gpu(run, arguments):
    done = run("benchmark", *arguments.split(), "device=cuda", "format=json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check(document)
    assert document["environment"]["gpu"]
    assert all(row["peak"] > 0 for row in document["rows"])
