"""The tail's Triton kernels, interpreted on the CPU, against the plain composition in float64.

``test_triton_tail.py`` runs this file in a process of its own: Triton decides at import whether it interprets.
"""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from triton.errors import TritonError
from triton.runtime import interpreter

from geexp import add_gather_excite
from geexp.backbones import fused_tail
from geexp.operators import VARIANTS, GatherExcite, gather_excite_tail, takes_kernels
from geexp.operators.tail import choices, launch
from tests.operators.test_tail import FORMATS, inputs, norm_of


@pytest.fixture(autouse=True)
def loops_over_sizes(monkeypatch):
    """Triton 3.6 converts its arrays of one element by ``int``, which NumPy refuses from 2.4 on."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def operator_of(variant, size, channels=6, extent="global", **options):
    torch.manual_seed(3)
    options |= {"size": size, "reduction": 2, "implementation": "reference"}
    operator = GatherExcite(channels, variant=variant, extent=extent, **options)
    for parameter in operator.parameters():
        nn.init.normal_(parameter, std=0.5)
    return operator.double()


def plain(operator, norm, branch, shortcut):
    return torch.relu(shortcut + operator(norm(branch)))


def results(function, operator, norm, branch, shortcut):
    """Output, gradients of a fixed random projection, and the buffers behind it, by name."""
    operator, norm = copy.deepcopy(operator), copy.deepcopy(norm)
    out = function(operator, norm, branch, shortcut)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out)
    wanted = {"branch": branch, "shortcut": shortcut}
    buffers = {}
    for name, module in (("norm", norm), ("operator", operator)):
        wanted |= {f"{name}.{key}": p for key, p in module.named_parameters()}
        buffers |= {f"{name}.{key}": b for key, b in module.named_buffers()}
    wanted = {name: t for name, t in wanted.items() if t.requires_grad}
    grads = torch.autograd.grad((out * probe).sum(), list(wanted.values()))
    return {"out": out.detach(), **{f"grad of {k}": g for k, g in zip(wanted, grads, strict=True)}, **buffers}


def assert_equal(operator, norm, branch, shortcut, **tolerance):
    got = results(gather_excite_tail, operator, norm, branch, shortcut)
    want = results(plain, operator, norm, branch, shortcut)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape
        torch.testing.assert_close(got[name], want[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)
    return got


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("variant", "training"), [*((variant, True) for variant in VARIANTS), ("theta_minus", False), ("theta_plus", False)]
)
def test_equals_the_plain_composition(variant, training, memory_format):
    for batch, size in ((3, (7, 7)), (5, (23, 24)), (2, (1, 3))):  # the second in several pieces if channels_last
        operator, norm = operator_of(variant, size).train(training), norm_of(6).double().train(training)
        branch, shortcut = inputs(batch, *size, memory_format)
        assert takes_kernels(operator, norm, branch, shortcut)
        got = assert_equal(operator, norm, branch, shortcut, rtol=1e-6, atol=1e-7)
        assert got["out"].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    ("variant", "extent", "memory_format", "options"),
    [
        *((variant, 2, torch.channels_last, {}) for variant in VARIANTS),
        *((variant, 4, memory_format, {}) for variant in ("theta_minus", "theta_plus") for memory_format in FORMATS),
        ("theta_minus", 8, torch.channels_last, {}),
        ("se", 4, torch.contiguous_format, {"border": "padded"}),
    ],
)
def test_finite_extents(variant, extent, memory_format, options):
    # Cells of one size; of several sizes, as 14x14 has for e=4; a grid of one window.
    for (batch, size), training in (((2, (4, 8)), True), ((3, (7, 6)), True), ((2, (2, 1)), False)):
        operator = operator_of(variant, size, extent=extent, **options).train(training)
        norm = norm_of(6).double().train(training)
        branch, shortcut = inputs(batch, *size, memory_format)
        assert takes_kernels(operator, norm, branch, shortcut)
        got = assert_equal(operator, norm, branch, shortcut, rtol=1e-6, atol=1e-7)
        assert got["out"].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_many_images(memory_format, monkeypatch):
    """More than the small kernels take at a time, and several steps in each of several groups."""
    monkeypatch.setattr(launch, "_IMAGES", 4)
    monkeypatch.setattr(launch, "_PROGRAMS", 2)
    for extent in ("global", 2):
        operator, norm = operator_of("theta", (2, 1), channels=10, extent=extent), norm_of(10).double()
        assert_equal(operator, norm, *inputs(11, 2, 1, memory_format, channels=10), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.3, "eps": 0.1}, {"track_running_stats": False}])
@pytest.mark.parametrize("training", [True, False])
def test_keeps_the_running_statistics_as_bn_does(options, training):
    mine, theirs = (norm_of(6, **options).double().train(training) for _ in range(2))
    operator = operator_of("theta_minus", (5, 4))
    for step in range(2):
        tensors = [t + step for t in inputs(2, 5, 4)]
        torch.testing.assert_close(gather_excite_tail(operator, mine, *tensors), plain(operator, theirs, *tensors))
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "frozen", [("norm.weight",), ("shortcut",), ("branch", "norm.weight", "norm.bias"), "operator"]
)
def test_what_needs_no_gradient_gets_none(frozen):
    operator, norm, (branch, shortcut) = operator_of("theta_plus", (4, 5)), norm_of(6).double(), inputs(2, 4, 5)
    tensors = {"branch": branch, "shortcut": shortcut, "norm.weight": norm.weight, "norm.bias": norm.bias}
    for tensor in operator.parameters() if frozen == "operator" else (tensors[name] for name in frozen):
        tensor.requires_grad_(False)
    assert_equal(operator, norm, branch, shortcut, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("variant", "extent"), [*((variant, "global") for variant in VARIANTS), ("theta_plus", 2)])
def test_double_backward(variant, extent):
    operator, norm = operator_of(variant, (3, 4), extent=extent), norm_of(6).double()
    (x, _) = inputs(3, 3, 4)

    def penalty(function):
        mine = copy.deepcopy(operator)
        out = function(mine, copy.deepcopy(norm), x.sin() * 2, x)  # which share their origin, as in every block
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return [*torch.autograd.grad(first.square().sum(), [x, *mine.parameters()]), *mine.buffers()]

    for a, b in zip(penalty(gather_excite_tail), penalty(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("variant", "extent"), [("theta_minus", "global"), ("theta", "global"), ("theta", 4)])
def test_a_mean_far_from_zero_costs_no_more_digits_than_in_bn(variant, extent, memory_format):
    operator, norm = operator_of(variant, (9, 9), extent=extent).float(), norm_of(6, momentum=1.0)
    branch, shortcut = inputs(4, 9, 9, memory_format, torch.float32)
    branch = (branch.detach() + 1e4).requires_grad_()
    exact = results(
        plain,
        copy.deepcopy(operator).double(),
        copy.deepcopy(norm).double(),
        *(t.detach().double().requires_grad_() for t in (branch, shortcut)),
    )
    mine, theirs = (results(f, operator, norm, branch, shortcut) for f in (gather_excite_tail, plain))
    for name, want in exact.items():
        error, usual = ((got[name].double() - want).norm() / want.double().norm() for got in (mine, theirs))
        assert error <= 2 * usual + 1e-6, name


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(
    ("dtype", "variant", "extent"),
    [
        *((torch.bfloat16, variant, "global") for variant in VARIANTS),
        (torch.float16, "theta", "global"),
        (torch.bfloat16, "theta_plus", 4),
    ],
)
def test_half_precision_accumulates_in_float32(dtype, variant, extent, autocast):
    operator, norm = operator_of(variant, (9, 9), extent=extent), norm_of(6)
    operator = operator.to(torch.float32 if autocast else dtype)
    branch, shortcut = inputs(8, 9, 9, torch.channels_last, dtype)
    exact = results(
        plain, copy.deepcopy(operator).float(), norm, *(t.detach().float().requires_grad_() for t in (branch, shortcut))
    )
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        mine, theirs = (results(f, operator, norm, branch, shortcut) for f in (gather_excite_tail, plain))
    assert [t.dtype for t in mine.values()] == [t.dtype for t in theirs.values()]
    for name, want in exact.items():
        error, usual = ((got[name].double() - want).norm() / want.double().norm() for got in (mine, theirs))
        assert error <= max(0.02, 1.5 * usual), name


def test_not_a_number_stays_one():
    branch, shortcut = inputs(2, 3, 3)
    with torch.no_grad():
        branch[0, 0, 0, 0] = float("nan")
    out = gather_excite_tail(operator_of("theta_minus", (3, 3)), norm_of(6).double(), branch, shortcut)
    assert out[:, 0].isnan().all()
    assert not out[:, 1:].isnan().any()


def test_saves_only_branch_and_result_for_backward():
    branch, shortcut = inputs(4, 32, 32, dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = gather_excite_tail(operator_of("se", (32, 32)).float(), norm_of(6), branch, shortcut)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*saved, out)}
    assert sum(storages.values()) <= 2.05 * out.numel() * 4


def test_unsupported_inputs():
    norm, (branch, shortcut) = norm_of(6).double(), inputs(2, 4, 6)
    assert takes_kernels(operator_of("theta", (4, 6)), norm, branch, shortcut)
    assert not takes_kernels(operator_of("theta", (6, 4)), norm, branch, shortcut)
    hooked = operator_of("theta_plus", (4, 6))
    hooked.gather[1].weight.register_hook(lambda grad: 2 * grad)
    assert not takes_kernels(hooked, norm, branch, shortcut)
    for extent in (2, "global"):
        pooled = GatherExcite(6, variant="se", extent=extent, pool="max", reduction=2)
        assert not takes_kernels(pooled, norm, branch, shortcut)
    assert not takes_kernels(operator_of("theta", (4, 6), channels=5, extent=2), norm, branch, shortcut)
    assert not takes_kernels(operator_of("theta", (4, 6)), nn.SyncBatchNorm(6), branch, shortcut)


@pytest.fixture
def kernels_everywhere(monkeypatch):
    """Blocks take the kernels on the CPU, as they do on a GPU."""
    monkeypatch.setattr(fused_tail, "_has_kernels", lambda x: True)
    monkeypatch.setattr(choices, "_chosen", {})


def network(variant, implementation):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", channels=(4, 8, 8, 16), num_classes=3)
    options = {"image_size": 16, "reduction": 2, "stages": [3]}
    return add_gather_excite(model, variant=variant, implementation=implementation, **options).double()


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize("variant", ["theta_minus", "theta_plus"])
def test_a_training_step_of_a_network(variant, monkeypatch):
    calls = []
    whole = fused_tail.gather_excite_tail
    monkeypatch.setattr(fused_tail, "gather_excite_tail", lambda *a: calls.append(1) or whole(*a))
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    states = []
    for implementation in ("reference", "fused"):
        model = network(variant, implementation)
        for _ in range(2):
            model(x).square().sum().backward()
        states.append({**{k: p.grad for k, p in model.named_parameters()}, **dict(model.named_buffers())})
    assert len(calls) == 4
    for name, want in states[0].items():
        torch.testing.assert_close(states[1][name], want, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


class Case:
    """Inputs for which ``auto`` has to choose."""

    def __init__(self, variant="theta"):
        self.operator, self.norm = operator_of(variant, (4, 5)), norm_of(6).double()
        self.tensors = inputs(3, 4, 5)

    def pays(self):
        return choices.kernels_pay(self.operator, self.norm, *self.tensors)


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize(("fused", "composed"), [(1.0, 2.0), (2.0, 1.0)])
def test_auto_takes_the_faster_and_keeps_to_it(fused, composed, monkeypatch, caplog):
    caplog.set_level("INFO")
    timed = []
    monkeypatch.setattr(choices, "milliseconds", lambda steps: timed.append(len(steps)) or [fused, composed])
    case = Case()
    before = copy.deepcopy([case.operator.state_dict(), case.norm.state_dict()])
    random = torch.get_rng_state()
    assert case.pays() == (fused < composed)
    assert case.pays() == (fused < composed)
    assert timed == [2]
    (record,) = caplog.records
    assert "theta global 6x4x5 float64 contiguous" in record.message
    assert all(f"{time:.2f} ms" in record.message for time in (fused, composed))
    torch.testing.assert_close([case.operator.state_dict(), case.norm.state_dict()], before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in (*case.operator.parameters(), *case.tensors))

    kept = choices.export()
    monkeypatch.setattr(choices, "_chosen", {})
    choices.restore(kept)
    case.tensors = [t[:2] for t in case.tensors]  # the last batch of an epoch
    assert case.pays() == (fused < composed)
    assert timed == [2]
    torch.use_deterministic_algorithms(True)
    try:
        assert not case.pays()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize("fault", ["wrong", "not finite", "broken", "memory"])
def test_auto_takes_the_composition_where_the_kernels_fail(fault, monkeypatch, caplog):
    caplog.set_level("INFO")

    def faulty(*arguments):
        if fault == "broken":
            raise TritonError("no compiler")
        if fault == "memory":
            raise torch.OutOfMemoryError("full")
        return gather_excite_tail(*arguments) * (1.1 if fault == "wrong" else float("nan"))

    monkeypatch.setattr(choices, "gather_excite_tail", faulty)
    monkeypatch.setattr(choices, "milliseconds", lambda steps: [1.0, 2.0])
    assert not Case().pays()
    (record,) = caplog.records
    assert {"wrong": "differ", "not finite": "nan", "broken": "no compiler", "memory": "memory"}[
        fault
    ] in record.message


@pytest.mark.usefixtures("kernels_everywhere")
def test_auto_measures_within_a_checkpointed_block(monkeypatch):
    monkeypatch.setattr(choices, "milliseconds", lambda steps: [1.0, 2.0])
    model = network("theta_minus", "auto")
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    checkpoint(model.layer2, x, use_reentrant=False).sum().backward()
    assert set(choices.export().values()) == {"fused"}
