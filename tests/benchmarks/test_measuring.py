"""The arithmetic of the benchmarks - rounds, ratios, targets, bytes - and contenders that compute the same."""

import gc
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import operators
import steps
from contenders import BayesWatchStyle, RepairedTimm, others, tails
from geexp.operators import VARIANTS, GatherExcite
from measuring import MEMORY_FORMATS, Row, Target, against_targets, interleaved, saved_bytes


def test_rounds_are_interleaved_in_shuffled_order_and_warm_up_does_not_count():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "abc"}

    def clock(work):
        work()
        return len(order)

    measured = interleaved(works, clock, rounds=20, warm_up=1)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 63, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({*rounds}) > 3
    assert measured == {name: [i + 1 for i in range(3, 63) if order[i] == name] for name in "abc"}


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    a = Row("case", "a", {"step": [2.0, 9.0, 4.0]}, {"saved": 6.0})
    b = Row("case", "b", {"step": [1.0, 3.0, 4.0]}, {"saved": 4.0})
    assert a.spread("step") == (4.0, 2.0, 9.0)
    assert a.spread("step", b) == (2.0, 1.0, 3.0)
    assert a.spread("saved", b) == (1.5, 1.5, 1.5)
    assert a.spread("peak", b) is None


def test_targets_are_met_or_missed_by_the_median():
    rows = [
        Row("case", "ours", {"step": [1.0, 1.0]}, {"saved": 4.0}),
        Row("case", "theirs", {"step": [2.0, 4.0]}, {"saved": 4.0}),
    ]
    targets = [
        Target("case", "ours", "step", "≥", 3.0, "theirs"),
        Target("case", "ours", "step", "≥", 3.1, "theirs"),
        Target("case", "ours", "saved", "≤", 1.0, "theirs"),
        Target("case", "ours", "saved", "≤", 3.9),
        Target("other case", "ours", "step", "≥", 3.0, "theirs"),
        Target("case", "ours", "step", "≥", 3.0, "not measured"),
        Target("case", "ours", "peak", "≤", 3.0, "theirs"),
    ]
    found = against_targets(targets, rows)
    assert [one["met"] for one in found] == [True, False, True, False]
    about = {"name": "step, theirs / ours", "case": "case", "contender": "ours", "sign": "≥", "bound": 3.0}
    assert found[0] == about | {"value": 3.0, "low": 2.0, "high": 4.0, "met": True}
    assert (found[3]["name"], found[3]["value"]) == ("saved", 4.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_target_is_measured(device):
    dtype, precision = ("float32", "32-true") if device == "cpu" else ("bfloat16", "bf16-mixed")
    options = SimpleNamespace(
        device=device, variants=None, extents=None, tails=False,
        shapes=operators.RESNET50, dtypes=[dtype], layouts=[*MEMORY_FORMATS],
    )  # fmt: skip
    assert {one.case for one in operators.targets_of(device)} <= {str(case) for case in operators.cases_of(options)}
    measured = {
        steps.case_of("resnet50", variant, "global", layout, precision)
        for variant in VARIANTS
        for layout in MEMORY_FORMATS
    }
    assert {one.case for one in steps.targets_of(device)} <= measured


def test_every_saved_storage_counts_once_without_parameters():
    weight = torch.ones(1000, requires_grad=True)
    x = torch.ones(1000, requires_grad=True)
    assert saved_bytes(lambda: (x * weight).sigmoid(), [weight]) == 4000 + 4000  # x and the result, once each
    assert saved_bytes(lambda: x.square() + x.square(), []) == 4000


def test_measuring_saved_bytes_leaks_nothing():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sigmoid())
    saved_bytes(partial(module, torch.ones(2, 2)), module.parameters())
    weight = weakref.ref(module[0].weight)
    del module
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("extent", [2, 8, "global"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_contenders_keep_shapes_and_train(variant, extent):
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    modules = others(16, variant=variant, extent=extent, size=(8, 8))
    for module in modules.values():
        y = module(x)
        assert y.shape == x.shape
        gradients = torch.autograd.grad(y.sum(), [x, *module.parameters()])
        assert all(g is not None for g in gradients)
    assert ("convolution" in modules) == (extent == "global" and variant in ("theta", "theta_plus"))
    assert "bayeswatch" not in others(16, variant="se", extent=8, size=(7, 7))


@pytest.mark.parametrize(
    ("contender", "variant", "extent"),
    [
        *((RepairedTimm, variant, extent) for variant in ("theta_minus", "theta") for extent in (2, "global")),
        (BayesWatchStyle, "theta_minus", "global"),
    ],
)
def test_contenders_compute_what_ours_does(contender, variant, extent):
    """With the same parameters; timm's GE-θ⁺ and SE differ by what timm omits and in their parameters' names."""
    options = {"variant": variant, "extent": extent, "size": (8, 8)}
    ours, theirs = GatherExcite(16, **options).double(), contender(16, **options).double()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data.copy_(own)
    x = torch.randn(3, 16, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), ours(x))


def test_unfused_tail_is_timms():
    z, shortcut = torch.randn(2, 3, 16, 8, 8, dtype=torch.float64)
    found = {
        name: tail.double()(z, shortcut)
        for name, tail in tails(16, variant="theta_minus", extent="global", size=(8, 8)).items()
        if name != "fused"
    }
    torch.testing.assert_close(found["unfused"], found["timm"])
    assert not torch.allclose(found["plain"], found["timm"])
