"""Complexity as the paper counts it: against the paper's tables, and against torch's own counter."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geexp import build_model
from geexp.backbones.complexity import count_complexity
from geexp.operators import Excite
from geexp.registry import options
from geexp.report.measured import Runs
from geexp.report.report import KNOWN_DIFFERENCES, report_table
from geexp.report.rows import rows_of


@pytest.mark.parametrize("name", ["1", "2", "3"])
def test_tables_1_to_3(name):
    """Every GFLOPs to both printed decimals, every #Params within 0.1 M."""
    for row in report_table(name, Runs([])).rows:
        gflops, params = row.complexity["gflops"], row.complexity["params_m"]
        assert round(gflops["computed"], 2) == gflops["printed"], row.label
        assert params["computed"] == pytest.approx(params["printed"], abs=0.1), row.label
        assert gflops["agrees"]
        assert params["agrees"]


def test_table_4():
    rows = {row.label: row.complexity for row in report_table("4", Runs([])).rows}
    for label in ("ShuffleNet (Baseline)", "SE", "GE-θ", "GE-θ⁺"):
        assert round(rows[label]["mflops"]["computed"], 1) == rows[label]["mflops"]["printed"]
    marked = {("4", label, c) for label, row in rows.items() for c in ("mflops", "params_m") if not row[c]["agrees"]}
    assert marked == set(KNOWN_DIFFERENCES)
    assert rows["GE-θ (E8)"]["params_m"]["agrees"]  # 2.2 M fits log2(8) convolutions, not the text's 8/2


@pytest.mark.parametrize("ge", ["none", "theta", "theta_plus", "se"])
@pytest.mark.parametrize("name", ["resnet50", "shufflenet_g3", "resnet20", "wrn16_8"])
def test_equals_torchs_counter(name, ge):
    """Torch counts two operations per multiply-accumulate and knows neither products nor our global gather."""
    with torch.device("meta"):
        size = options("model")[name]["home_size"]
        model = build_model(name, ge=ge, extent=8).eval()
        products = []
        for module in model.modules():
            if isinstance(module, Excite):
                module.register_forward_hook(lambda _m, _i, out: products.append(out.numel()))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, size, size))
    expected = counter.get_total_flops() // 2 + sum(products)
    assert count_complexity(model, (3, size, size)).total.macs == expected


def test_parts_add_up_and_the_model_is_left_alone():
    model = build_model("resnet20", ge="theta").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    complexity = count_complexity(model, (3, 32, 32))
    assert list(complexity.parts) == ["stem", "stage2", "stage3", "stage4", "head"]
    assert complexity.total.params == sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() for name, b in model.named_buffers() if "running" in name)
    assert complexity.total.params_with_bn_statistics == complexity.total.params + buffers
    assert complexity.parts["head"].macs == 640
    assert complexity.parts["stem"].params == 432
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.fixture
def run(forked, tmp_path):
    """``run("…")``: the ended process of ``python -m geexp.complexity``."""
    return lambda *arguments: forked.run(tmp_path, "complexity", *arguments)[0]


def test_json_is_one_object_and_nothing_else(run):
    done = run("model=resnet50", "ge=theta", "format=json")
    assert done.returncode == 0
    assert done.stderr == ""
    printed = json.loads(done.stdout)
    assert (printed["params"], printed["params_with_bn_statistics"]) == (31_106_600, 31_189_928)
    assert printed["macs"] == 3_869_011_968
    assert all(isinstance(printed[key], int) for key in ("params", "params_with_bn_statistics", "macs"))


def test_table_on_the_terminal(run):
    done = run("table=4")
    assert done.returncode == 0
    assert all(row.label in done.stdout for row in rows_of(4))
    assert done.stdout.count("≠") == 8  # four cells and their notes


def test_other_settings(run):
    resnet20 = ["model=resnet20", "ge=none", "format=json"]
    home, small = (json.loads(run(*resnet20, *more).stdout) for more in ([], ["image_size=16", "num_classes=100"]))
    assert small["macs"] < home["macs"]
    assert small["params"] - home["params"] == 90 * 65
