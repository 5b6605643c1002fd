"""BN, GE-θ⁻, residual sum and ReLU as one operator against their plain composition, mostly in float64.

The operator runs uncompiled except in the slow tests, since compiling takes tens of seconds.
"""

import copy

import pytest
import torch
from torch import nn

from geexp.operators import PoolGather, average_excite_tail, excite, tail_failure, takes_tail
from tests.support.tail import run_uncompiled

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch, request):
    if "slow" not in request.keywords:
        run_uncompiled(monkeypatch)


def norm_of(channels, **options):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels, **options)
    for tensor in (norm.weight, norm.bias):
        nn.init.normal_(tensor)
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def plain(norm, branch, shortcut):
    y = norm(branch)
    gathered = PoolGather("global", implementation="reference")(y)
    return torch.relu(shortcut + excite(y, gathered, "reference"))


def inputs(N, H, W, memory_format=torch.contiguous_format, dtype=torch.float64, channels=6):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(N, channels, H, W, generator=generator, dtype=torch.float64)
        .to(dtype)
        .to(memory_format=memory_format)
        .requires_grad_()
        for _ in range(2)
    ]


def results(function, norm, branch, shortcut):
    """Output, gradients of a fixed random projection, and the running statistics behind it."""
    norm = copy.deepcopy(norm)
    out = function(norm, branch, shortcut)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out)
    wanted = [t for t in (branch, shortcut, norm.weight, norm.bias) if t.requires_grad]
    return [out.detach(), *torch.autograd.grad((out * probe).sum(), wanted), *norm.buffers()]


def assert_equal(norm, branch, shortcut, **tolerance):
    got = results(average_excite_tail, norm, branch, shortcut)
    for a, b in zip(got, results(plain, norm, branch, shortcut), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    return got[0]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [(3, 13, 10), (1, 1, 9), (4, 1, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_plain_composition(training, size, memory_format):
    branch, shortcut = inputs(*size, memory_format)
    out = assert_equal(norm_of(6).double().train(training), branch, shortcut, rtol=1e-9, atol=1e-10)
    assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.3, "eps": 0.1}, {"track_running_stats": False}])
@pytest.mark.parametrize("training", [True, False])
def test_keeps_the_running_statistics_as_bn_does(options, training):
    mine, theirs = (norm_of(6, **options).double().train(training) for _ in range(2))
    for step in range(3):
        tensors = [t + step for t in inputs(2, 5, 4)]
        torch.testing.assert_close(average_excite_tail(mine, *tensors), plain(theirs, *tensors))
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name])


@pytest.mark.parametrize("frozen", [("weight",), ("shortcut",), ("branch", "weight", "bias")])
def test_what_needs_no_gradient_gets_none(frozen):
    norm, (branch, shortcut) = norm_of(6).double(), inputs(2, 4, 5)
    for name in frozen:
        {"branch": branch, "shortcut": shortcut, "weight": norm.weight, "bias": norm.bias}[name].requires_grad_(False)
    assert_equal(norm, branch, shortcut, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_and_double_backward(training, memory_format):
    norm = norm_of(2).double().train(training)
    branch, shortcut = inputs(2, 3, 2, memory_format, channels=2)

    def function(branch, shortcut, weight, bias):
        of = {"norm.weight": weight, "norm.bias": bias}
        return torch.func.functional_call(Tail(norm), of, (branch, shortcut))

    tensors = (branch, shortcut, norm.weight.detach().requires_grad_(), norm.bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


class Tail(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, branch, shortcut):
        return average_excite_tail(self.norm, branch, shortcut)


def test_double_backward_where_branch_and_shortcut_share_their_origin():
    """As in every block: the recomputation must not count the shared origin twice."""
    norm, (x, _) = norm_of(6).double(), inputs(2, 3, 4)

    def penalty(function):
        branch = x.sin() * 2
        (first,) = torch.autograd.grad(function(norm, branch, x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, norm.weight, norm.bias])

    for a, b in zip(penalty(average_excite_tail), penalty(plain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_mean_far_from_zero_costs_no_more_digits_than_in_bn(memory_format):
    norm = norm_of(6, momentum=1.0)
    branch, shortcut = inputs(4, 14, 14, memory_format, torch.float32)
    branch = (branch.detach() + 1e4).requires_grad_()
    exact = results(
        plain, copy.deepcopy(norm).double(), *(t.detach().double().requires_grad_() for t in (branch, shortcut))
    )
    mine, theirs = (results(f, norm, branch, shortcut) for f in (average_excite_tail, plain))
    for a, b, want in zip(mine, theirs, exact, strict=True):
        error, usual = ((t.double() - want).norm() / want.double().norm() for t in (a, b))
        assert error <= 2 * usual + 1e-6


@pytest.mark.parametrize("memory_format", FORMATS)
def test_bf16_accumulates_in_float32(memory_format):
    norm = norm_of(6)
    branch, shortcut = inputs(4, 14, 14, memory_format, torch.bfloat16)
    exact = results(plain, norm, *(t.detach().float().requires_grad_() for t in (branch, shortcut)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = results(average_excite_tail, norm, branch, shortcut)
    assert [t.dtype for t in got] == [torch.bfloat16] * 3 + [torch.float32] * 4 + [torch.int64]
    for a, b in zip(got, exact, strict=True):
        assert (a.double() - b.double()).norm() <= 0.01 * b.double().norm()


def test_saves_only_branch_and_result_for_backward():
    norm = norm_of(6)
    branch, shortcut = inputs(4, 32, 32, dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = average_excite_tail(norm, branch, shortcut)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*saved, out)}
    assert sum(storages.values()) <= 2.01 * out.numel() * 4


def test_result_may_be_changed_in_place_and_gradient_may_have_any_layout():
    for memory_format in FORMATS:
        norm, (branch, shortcut) = norm_of(6).double(), inputs(2, 4, 6, memory_format)
        out = average_excite_tail(norm, branch, shortcut)
        torch.autograd.grad(out.mean((2, 3)).sum(), branch)  # an expanded gradient
        follow = average_excite_tail(norm, branch, shortcut) * 1
        follow += shortcut
        follow.sum().backward()
        out = average_excite_tail(norm, branch, shortcut)
        out += 1  # which autograd notices, as it does for a plain ReLU
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_unsupported_inputs():
    branch, shortcut = (t.detach() for t in inputs(2, 4, 6))
    good = norm_of(6).double()
    assert takes_tail(good, branch, shortcut)
    assert not takes_tail(nn.SyncBatchNorm(6), branch, shortcut)
    assert not takes_tail(nn.BatchNorm2d(6, affine=False), branch, shortcut)
    assert not takes_tail(good, branch, shortcut.to(memory_format=torch.channels_last))
    assert not takes_tail(good, branch[:, :, ::2], shortcut[:, :, ::2])
    assert not takes_tail(good, branch, shortcut.float())
    assert not takes_tail(good, branch, shortcut[:1])
    assert not takes_tail(good, branch[:1, :, :1, :1], shortcut[:1, :, :1, :1])
    assert not takes_tail(good, branch[:0], shortcut[:0])


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_compiled(memory_format, dtype):
    torch._dynamo.reset()  # every case has its own kinds of call; past eight of them nothing would be compiled
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        check_compiled(memory_format, dtype)
    assert tail_failure() is None


def check_compiled(memory_format, dtype):
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    for training in (True, False):
        for size in ((2, 7, 7), (3, 13, 10), (5, 16, 9), (3, 1, 1)):
            branch, shortcut = inputs(*size, memory_format, dtype)
            norm = norm_of(6).to(torch.float64 if dtype == torch.float64 else torch.float32).train(training)
            compiled = results(average_excite_tail, norm, branch, shortcut)
            want = results(
                plain, copy.deepcopy(norm).double(), *(t.detach().double().requires_grad_() for t in (branch, shortcut))
            )
            for a, b in zip(compiled, want, strict=True):
                assert (a.double() - b.double()).norm() <= tolerance * max(1, b.double().norm())
