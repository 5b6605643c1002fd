"""What the figures are made of: the rounds, ratios and demands, bytes, and contenders that compute the same."""

import gc
import weakref
from functools import partial

import pytest
import torch

from geexp.benchmarks.contenders import BayesWatchStyle, RepairedTimm, others
from geexp.benchmarks.interleaved import interleaved
from geexp.benchmarks.memory import peak_bytes, saved_bytes
from geexp.benchmarks.rows import Row, Spread, Target, ratio, verdicts
from geexp.benchmarks.tails import tails
from geexp.operators import VARIANTS, GatherExcite


def test_rounds_are_interleaved_and_warm_up_does_not_count():
    order, advanced = [], []
    works = {name: lambda name=name: order.append(name) for name in "abc"}

    def clock(work):
        work()
        return float(len(order))

    seconds = interleaved(works, rounds=20, warm_up=1, clock=clock, advance=lambda: advanced.append(1))
    rounds = ["".join(order[i : i + 3]) for i in range(0, 63, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({*rounds}) > 3
    assert seconds == {name: [i + 1.0 for i in range(3, 63) if order[i] == name] for name in "abc"}
    assert len(advanced) == 21


def test_ratios_are_medians_of_the_rounds():
    a, b = (
        Row("case", "a", {"step": [2.0, 9.0, 4.0]}, {"saved": 6.0}),
        Row("case", "b", {"step": [1.0, 3.0, 4.0]}, {"saved": 4.0}),
    )
    assert ratio(a, b, "step") == Spread(2.0, 1.0, 3.0)
    assert ratio(a, b, "saved") == Spread(1.5, 1.5, 1.5)
    assert ratio(a, b, "peak") is None
    assert ratio(a, Row("case", "c", {}, {"saved": None}), "saved") is None


def test_demands_are_met_or_missed_by_the_median():
    rows = [
        Row("case", "ours", {"step": [1.0, 1.0]}, {"saved": 4.0}),
        Row("case", "theirs", {"step": [2.0, 4.0]}, {"saved": 4.0}),
    ]
    targets = [
        Target("faster", "case", "ours", "step", "theirs", at_least=3.0),
        Target("faster", "case", "ours", "step", "theirs", at_least=3.1),
        Target("kept", "case", "ours", "saved", "theirs", at_most=1.0),
        Target("kept", "case", "ours", "saved", at_most=3.9),
        Target("elsewhere", "other case", "ours", "step", "theirs", at_least=3.0),
        Target("nobody's", "case", "ours", "step", "nobody", at_least=3.0),
        Target("unknown", "case", "ours", "peak", "theirs", at_most=3.0),
    ]
    found = verdicts(targets, rows)
    assert [row.met for row in found] == [True, False, True, False]
    assert (found[0].value, found[0].low, found[0].high, found[0].sign) == (3.0, 2.0, 4.0, "≥")
    assert (found[3].value, found[3].bound, found[3].sign) == (4.0, 3.9, "≤")


def test_bytes_that_are_saved_and_held():
    weight = torch.ones(1000, requires_grad=True)
    x = torch.ones(1000, requires_grad=True)
    assert saved_bytes(lambda: (x * weight).sigmoid(), [weight]) == 4000 + 4000  # x and the result, once each
    assert saved_bytes(lambda: x.square() + x.square(), []) == 4000


def test_what_was_measured_is_freed():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sigmoid())
    saved_bytes(partial(module, torch.ones(2, 2)), module.parameters())
    weight = weakref.ref(module[0].weight)
    del module
    gc.collect()
    assert weight() is None


def test_bytes_at_the_highest():
    def work():
        a = torch.empty(1000)
        b = torch.empty(500)
        del a, b
        torch.empty(1000)

    assert 6000 <= peak_bytes(work, "cpu") < 7000


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


@pytest.mark.parametrize("extent", [2, "global"])
@pytest.mark.parametrize("variant", ["theta_minus", "theta"])
def test_timm_repaired_computes_what_ours_does(variant, extent):
    """With the same parameters; GE-θ⁺ and SE differ by what timm leaves out and by their sub-network's names."""
    options = {"variant": variant, "extent": extent, "size": (8, 8)}
    ours, theirs = GatherExcite(16, **options).double(), RepairedTimm(16, **options).double()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data.copy_(own)
    x = torch.randn(3, 16, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), ours(x))


def test_global_bayeswatch_is_the_same_operator():
    x = torch.randn(3, 16, 8, 8, dtype=torch.float64)
    options = {"variant": "theta_minus", "extent": "global", "size": (8, 8)}
    torch.testing.assert_close(BayesWatchStyle(16, **options)(x), GatherExcite(16, **options)(x))


def test_unfused_tail_is_timms():
    z, shortcut = torch.randn(2, 3, 16, 8, 8, dtype=torch.float64)
    found = {
        name: tail.double()(z, shortcut)
        for name, tail in tails(16, variant="theta_minus", extent="global", size=(8, 8)).items()
        if name != "fused"
    }
    torch.testing.assert_close(found["unfused"], found["timm"])
    assert not torch.allclose(found["plain"], found["timm"])
