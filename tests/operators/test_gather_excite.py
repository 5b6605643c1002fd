"""Values and gradients of every variant against the naive reference, in float64."""

import pytest
import torch
from torch import nn

from geexp import GatherExcite
from geexp.operators import VARIANTS, ConvGather, DepthwiseProduct, Excite, ExciteSubnetwork, PoolGather, excite
from geexp.operators.excite import _cells, _index_sum, _matrix_sum
from tests.operators import reference

# Sizes that the extent does not divide are the ones where window, padding and nearest index go wrong.
SIZES = [(7, 7), (14, 14), (13, 10), (8, 16)]
COMBINATIONS = [
    (variant, extent, pool)
    for variant in VARIANTS
    for extent in (2, 4, 8, "global")
    for pool in (("avg", "max") if variant in ("theta_minus", "se") else ("avg",))
]


def make(variant, extent, pool, size, channels=8, **options) -> GatherExcite:
    torch.manual_seed(0)
    module = GatherExcite(channels, variant=variant, extent=extent, size=size, pool=pool, reduction=2, **options)
    module = module.double()
    for parameter in module.parameters():  # away from the initial 0 and 1, so that every parameter matters
        nn.init.normal_(parameter)
    return module


def results(function, x, module):
    """Output, then the gradients of a fixed random projection with regard to x and every parameter."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad((y * probe).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("variant", "extent", "pool"), COMBINATIONS)
def test_equals_the_reference(variant, extent, pool, size, memory_format):
    module = make(variant, extent, pool, size)
    x = torch.randn(3, 8, *size, dtype=torch.float64).to(memory_format=memory_format)
    got = results(module, x, module)
    want = results(lambda v: reference.gather_excite(v, module), x, module)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert got[0].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 16), (13, 10)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("variant", "extent", "pool"), COMBINATIONS)
def test_implementations_differ_in_nothing_but_speed(variant, extent, pool, size, memory_format, training):
    modules = [
        make(variant, extent, pool, size, implementation=name).train(training)
        for name in ("reference", "fused", "auto")
    ]
    x = torch.randn(3, 8, *size, dtype=torch.float64).to(memory_format=memory_format)
    plain, *ours = [
        [*results(module, x, module), *module.buffers(), module.requires_grad_(False)(x)] for module in modules
    ]
    for found in ours:
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert modules[0].state_dict().keys() == modules[1].state_dict().keys()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_hooks_on_the_parts_see_them_at_work(memory_format):
    module = make("theta_minus", "global", "avg", None)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    for part in (module.gather, module.excite, module.excite.transform):
        seen = []
        handle = part.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        module(x)
        assert len(seen) == 1
        handle.remove()


@pytest.mark.parametrize(("H", "h"), [(122, 16), (198, 50), (230, 58), (14, 4), (28, 4), (12, 5)])
def test_nearest_index_is_exact_where_float32_is_not(H, h):
    x = torch.ones(1, 1, H, 1, dtype=torch.float64)
    logits = torch.arange(h, dtype=torch.float64).view(1, 1, h, 1) / h
    want = torch.sigmoid(torch.tensor([(i * h // H) / h for i in range(H)], dtype=torch.float64))
    torch.testing.assert_close(excite(x, logits).flatten(), want, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("extent", "size"), [(2, (17, 14)), (4, (14, 16))])
@pytest.mark.parametrize("border", ["real", "padded"])
def test_averages_by_matrices(extent, size, border):
    """On sizes large enough for them, which the tests of the whole have few of."""
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    gather = PoolGather(extent, border=border)
    assert "Matrices" in gather(x).grad_fn.name()
    torch.testing.assert_close(gather(x), reference.pooled(x, extent, "avg", border))
    torch.testing.assert_close(PoolGather(extent, "avg", "reference", border=border)(x), gather(x))
    assert torch.autograd.gradcheck(gather, (x,))
    assert torch.autograd.gradgradcheck(gather, (x,))


@pytest.mark.parametrize(("extent", "size"), [(2, (4, 6)), (2, (5, 3)), (8, (7, 7)), ("global", (4, 3))])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck_and_double_backward(variant, extent, size):
    module = make(variant, extent, "avg", size, channels=2)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 2, *size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
        assert torch.autograd.gradcheck(module, (x,))
        assert torch.autograd.gradgradcheck(module, (x,))


@pytest.mark.parametrize("extent", [2, 8, "global"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_without_graph_breaks(variant, extent):
    module = make(variant, extent, "avg", (14, 14)).float()
    x = torch.randn(3, 8, 14, 14)
    want = results(module, x, module)
    torch._dynamo.reset()  # every case is a module of its own: no recompilation limit between them
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for a, b in zip(results(compiled, x, module), want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("extent", [4, "global"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_exported(variant, extent):
    module = make(variant, extent, "avg", (14, 14)).float().eval()
    x = torch.randn(2, 8, 14, 14)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("extent", [2, 4, "global"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_autocast(variant, extent):
    module = make(variant, extent, "avg", (14, 14)).float()
    x = torch.randn(4, 8, 14, 14, requires_grad=True)
    want = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x.bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (x, *module.parameters()))
    assert (y.float() - want).norm() / want.norm() < 0.03


def test_keeps_no_full_resolution_gate_for_backward():
    module = make("theta_minus", 8, "avg", None).float()
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        module(x)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    assert sum(storages.values()) <= 1.03 * x.numel() * 4


def test_global_gather_is_the_depthwise_convolution():
    product = DepthwiseProduct(6, (9, 5)).double()
    convolution = nn.Conv2d(6, 6, (9, 5), groups=6, bias=False).double()
    convolution.load_state_dict(product.state_dict())
    x = torch.randn(2, 6, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(product(x), convolution(x))


def test_se_is_a_pair_of_public_parts():
    torch.manual_seed(0)
    whole = GatherExcite(32, variant="se", extent="global")
    gather, gate = PoolGather("global"), Excite(ExciteSubnetwork(32))
    gate.load_state_dict(whole.excite.state_dict())
    x = torch.randn(2, 32, 5, 5)
    torch.testing.assert_close(gate(x, gather(x)), whole(x))


def test_in_place_sum_with_the_shortcut_is_allowed():
    for extent, memory_format in [
        (4, torch.contiguous_format),
        (4, torch.channels_last),
        ("global", torch.contiguous_format),
    ]:
        x = torch.randn(2, 8, 16, 16).to(memory_format=memory_format).requires_grad_()
        y = make("theta_minus", extent, "avg", None).float()(x)
        y += x
        y.sum().backward()
        assert x.grad is not None


def test_gate_is_what_multiplies_x():
    module = make("theta_plus", "global", "avg", (6, 6))
    module.eval()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(module(x), x * module.gate(x))


def test_initial_values_are_those_of_the_definitions():
    torch.manual_seed(0)
    module = GatherExcite(512, variant="theta_plus", extent="global", size=14)
    gathering, norm = module.gather[0], module.gather[1]
    assert gathering.weight.std().item() == pytest.approx((2 / 14**2) ** 0.5, rel=0.02)
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()
    for convolution in (module.excite.transform[0], module.excite.transform[2]):
        assert convolution.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert convolution.bias.eq(0).all()
    local = ConvGather(512, 8)
    assert local[0].weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert [type(layer).__name__ for layer in local] == ["Conv2d", "BatchNorm", "ReLU"] * 2 + ["Conv2d", "BatchNorm"]


def test_says_what_is_wrong():
    for extent in (0, 1, 3, 6, -2, 2.0, "Global", "8", None, True):
        with pytest.raises(ValueError, match=r"2, 4, 8 .*'global'"):
            GatherExcite(8, variant="theta_minus", extent=extent)
    with pytest.raises(ValueError, match="theta_minus, theta, theta_plus, se"):
        GatherExcite(8, variant="thetaa", extent=2)
    with pytest.raises(ValueError, match="size is missing"):
        GatherExcite(8, variant="theta", extent="global")
    with pytest.raises(ValueError, match="'avg' and 'max'"):
        GatherExcite(8, variant="theta_minus", extent=2, pool="median")
    with pytest.raises(ValueError, match=r"pool='max'.*only theta_minus and se use pooling"):
        GatherExcite(8, variant="theta", extent=2, pool="max")
    with pytest.raises(ValueError, match=r"border='padded'.*only theta_minus and se use pooling"):
        GatherExcite(8, variant="theta", extent=2, border="padded")
    with pytest.raises(ValueError, match=r"border='half'.*'real' and 'padded'"):
        GatherExcite(8, variant="se", extent=2, border="half")
    with pytest.raises(ValueError, match=r"implementation='fast'.*'auto', 'reference', 'fused'"):
        GatherExcite(8, variant="theta", extent=2, implementation="fast")
    with pytest.raises(ValueError, match="reduction=16"):
        GatherExcite(8, variant="se", extent="global")
    with pytest.raises(ValueError, match="built for 8 channels of 7x7, but the input has 8 channels of 8x8"):
        GatherExcite(8, variant="theta", extent="global", size=7)(torch.randn(2, 8, 8, 8))
    with pytest.raises(ValueError, match="at least two images per device"):
        GatherExcite(8, variant="theta", extent=8)(torch.randn(1, 8, 7, 7))


def test_a_global_gather_refuses_what_would_broadcast():
    gather = DepthwiseProduct(16, (7, 7))
    for shape in ((2, 16, 1, 1), (2, 1, 7, 7), (2, 16, 7, 1)):
        with pytest.raises(ValueError, match="built for 16 channels of 7x7"):
            gather(torch.randn(shape))
    with pytest.raises(ValueError, match="GlobalConvGather"):
        ConvGather(8, "global")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sums_of_cells_are_the_same_by_matrix(memory_format):
    """As they are computed on a GPU."""
    t = torch.randn(2, 5, 14, 13, dtype=torch.float64).to(memory_format=memory_format)
    with torch.inference_mode():
        cells = _cells(14, 13, t[:, :, :4, :4])
    assert not cells.is_inference()
    assert cells is _cells(14, 13, t[:, :, :4, :4])
    by_matrix = _matrix_sum(t, cells, 4, 4)
    torch.testing.assert_close(by_matrix, _index_sum(t, 4, 4))
    assert by_matrix.is_contiguous(memory_format=memory_format)
