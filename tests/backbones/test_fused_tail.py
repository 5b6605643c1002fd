"""Blocks of timm's ResNet with a fused tail are the blocks without, and nothing that looks into them is misled.

The tail itself is compared in tests/operators/test_tail.py; here it runs uncompiled but where compiling is the point.
"""

import copy
import io
import logging
import pickle

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from geexp import add_gather_excite, build_model
from geexp.backbones import block_outputs, fused_tail
from geexp.backbones.residual import cut_at
from geexp.operators import tail
from geexp.operators.gather_excite import GatherExcite

FORMATS = [torch.contiguous_format, torch.channels_last]
EXTENTS = pytest.mark.parametrize("extent", ["global", 4])


@pytest.fixture
def uncompiled(monkeypatch):
    for sweeps in (tail._forward, tail._backward):
        monkeypatch.setattr(sweeps, "compiled", sweeps.function)


@pytest.fixture
def fused(monkeypatch):
    """How often a tail was computed as one."""
    calls = []
    for name in ("average_excite_tail", "finite_average_excite_tail"):
        whole = getattr(fused_tail, name)
        monkeypatch.setattr(fused_tail, name, lambda *a, whole=whole: calls.append(1) or whole(*a))
    return calls


@pytest.fixture
def said(monkeypatch, caplog):
    monkeypatch.setattr(fused_tail, "_said", set())
    caplog.set_level(logging.WARNING)
    return caplog


def pair(name="resnet18", **options):
    """The same small network of timm's, with the plain composition and with fused tails, in float64."""
    models = []
    for implementation in ("reference", "fused"):
        torch.manual_seed(0)
        block_args = {"channels": (4, 8, 8, 16), "num_classes": 3}
        model = timm.create_model(name, **block_args)
        add_gather_excite(model, variant="theta_minus", image_size=32, implementation=implementation, **options)
        models.append(model.double().train())
    return models


def step(model, memory_format=torch.contiguous_format, size=(33, 40)):
    """The loss, all gradients and all buffers of one training step."""
    torch.manual_seed(1)
    x = torch.randn(3, 3, *size, dtype=next(model.parameters()).dtype).to(memory_format=memory_format)
    loss = F.cross_entropy(model(x), torch.tensor([0, 1, 2]))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}


def assert_same(got, want, **tolerance):
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("name", "extent"), [("resnet18", "global"), ("resnet50", "global"), ("resnet18", 4)])
def test_a_training_step_is_the_plain_one(name, extent, memory_format, fused):
    plain, ours = (m.to(memory_format=memory_format) for m in pair(name, extent=extent))
    assert_same(step(ours, memory_format), step(plain, memory_format), rtol=1e-7, atol=1e-9)
    assert len(fused) == {"resnet18": 8, "resnet50": 16}[name]
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in ours.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.usefixtures("uncompiled")
@EXTENTS
def test_with_frozen_bn(extent, fused):
    plain, ours = pair(extent=extent)
    for model in (plain, ours):
        step(model)
        model.zero_grad()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.weight.requires_grad_(False)
    del fused[:]
    assert_same(step(ours), step(plain), rtol=1e-7, atol=1e-9)
    assert len(fused) == 8


@pytest.mark.usefixtures("uncompiled")
@EXTENTS
def test_in_evaluation_the_operations_are_the_plain_ones(extent, fused):
    plain, ours = pair(extent=extent)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    ours.eval()
    plain.eval()
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))
        seen = block_outputs(ours, x)
        shortcut, _, rest = cut_at(ours, "conv3_2")
        assert shortcut(seen["conv3_1"]) is seen["conv3_1"]
        assert torch.equal(rest(seen["conv3_2"]), ours(x))
    assert not fused


@pytest.mark.usefixtures("uncompiled")
@EXTENTS
def test_hooks_on_the_parts_see_them_at_work(extent, fused):
    _, model = pair(extent=extent)
    block = model.layer1[0]
    for part in (block.bn2, block.act2, block.se, block.se.gather, block.se.excite.transform):
        seen = []
        handle = part.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        del fused[:]
        step(model)
        assert len(seen) == 1
        assert len(fused) == 7
        handle.remove()
    outputs = []
    block.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    del fused[:]
    step(model)
    assert len(outputs) == 1
    assert len(fused) == 8


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "change",
    [
        {"drop_path": nn.Dropout(0.0)},
        {"act2": nn.GELU()},
        {"se": nn.Identity()},
        {"se": None},
        {"bn2": nn.Identity()},
        {"se": GatherExcite(4, variant="theta_minus", extent="global", pool="max")},
        {"se": GatherExcite(4, variant="theta_minus", extent="global", implementation="reference")},
    ],
)
def test_blocks_that_were_changed_since_are_computed_as_they_are(change, fused):
    plain, ours = pair()
    for model in (plain, ours):
        for name, value in change.items():
            setattr(model.layer1[0], name, copy.deepcopy(value))
    assert_same(step(ours), step(plain), rtol=1e-7, atol=1e-9)
    assert len(fused) == 7


def test_automatically_only_where_compiling_pays(monkeypatch, fused):
    for sweeps in (tail._forward, tail._backward):
        monkeypatch.setattr(sweeps, "compiled", sweeps.function)
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=3, channels=(4, 8, 8, 16))
    add_gather_excite(model, variant="theta_minus", image_size=32)
    step(model)
    assert not fused
    monkeypatch.setattr(fused_tail, "_LEAST_VALUES_ON_CPU", 3 * 4 * 8 * 8)
    step(model, size=(32, 32))
    assert len(fused) == 2


@pytest.mark.parametrize(("memory_format", "blocks"), [(torch.contiguous_format, 4), (torch.channels_last, 8)])
def test_automatically_a_finite_extent_where_no_contiguous_map_is_resized_by_index(memory_format, blocks, fused):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=3, channels=(4, 8, 8, 16)).to(memory_format=memory_format)
    add_gather_excite(model, variant="theta_minus", extent=2, image_size=40)
    step(model, memory_format, size=(80, 80))  # maps of 20, 10, 5 and 3; grids of 10, 5, 3 and 2
    assert len(fused) == blocks


def test_a_finite_extent_needs_no_compiler(said, fused, monkeypatch):
    monkeypatch.setattr(tail._forward, "failure", RuntimeError("No working C++ compiler found"))
    plain, ours = pair(extent=4)
    assert_same(step(ours), step(plain), rtol=1e-7, atol=1e-9)
    assert len(fused) == 8
    assert not said.records


@pytest.mark.usefixtures("uncompiled")
@EXTENTS
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed(reentrant, extent, fused):
    plain, ours = pair(extent=extent)
    want = step(plain)
    for sequence in (ours.layer1, ours.layer3):
        whole = sequence.forward
        sequence.forward = lambda x, whole=whole: checkpoint(whole, x, use_reentrant=reentrant)
    got = step(ours)
    parameters = dict(ours.named_parameters()).keys()  # BN's statistics are updated twice by a checkpoint
    assert_same({k: got[k] for k in parameters}, {k: want[k] for k in parameters}, rtol=1e-7, atol=1e-9)
    assert len(fused) >= 8


@pytest.mark.usefixtures("uncompiled")
@EXTENTS
def test_copies_and_pickles_stand_on_their_own(extent, fused):
    _, model = pair(extent=extent)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    want = step(model)
    for other in copies:
        assert other.layer1[0].forward.block is other.layer1[0]
        del fused[:]
        assert_same(step(other), want, rtol=0, atol=0)
        assert len(fused) == 8


@pytest.mark.usefixtures("uncompiled")
@EXTENTS
def test_bf16_autocast(extent, fused):
    plain, ours = (m.float() for m in pair(extent=extent))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = step(ours), step(plain)
    assert len(fused) == 8
    for name in want:
        if "conv" not in name and want[name].is_floating_point():
            assert (got[name] - want[name]).norm() <= 0.1 * want[name].norm() + 1e-2, name


@pytest.mark.usefixtures("uncompiled")
@EXTENTS
def test_a_second_derivative(extent):
    plain, ours = pair(extent=extent)
    torch.manual_seed(1)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = []
    for model in (ours, plain):
        gradients = torch.autograd.grad(model(x).square().sum(), list(model.parameters()), create_graph=True)
        sum(g.square().sum() for g in gradients).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_same(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("uncompiled")
@EXTENTS
def test_synchronised_bn_is_left_alone_and_said_once(extent, said, fused):
    _, model = pair(extent=extent)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()  # which trains on GPUs only
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        model(x).sum().backward()
    assert not fused
    assert [record.message for record in said.records if "SyncBatchNorm" in record.message] == [
        "SyncBatchNorm: BN, Gather-Excite, sum and ReLU are computed one by one, as one they know of one device"
    ]


def test_without_a_compiler_it_goes_on_and_says_so_once(said, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("No working C++ compiler found")

    for name in ("_forward", "_backward"):
        monkeypatch.setattr(tail, name, tail.Compiled(getattr(tail, name).function))
    monkeypatch.setattr(torch, "compile", broken)
    plain, ours = pair()
    for _ in range(2):
        assert_same(step(ours), step(plain), rtol=1e-7, atol=1e-9)
    assert len(said.records) == 1
    assert "No working C++ compiler found" in said.records[0].message


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_exported_and_transformed_networks_are_the_plain_ones(fused):
    plain, ours = (m.eval() for m in pair())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    want = plain(x)
    del fused[:]
    torch.testing.assert_close(torch.export.export(ours, (x,)).module()(x), want)
    torch.testing.assert_close(torch.jit.trace(ours, x)(x), want)
    (gradient,) = (torch.func.grad(lambda v: ours(v).sum())(x),)
    assert gradient.shape == x.shape
    assert not fused


@pytest.mark.usefixtures("uncompiled")
@EXTENTS
def test_the_whole_network_compiled(extent, fused):
    plain, ours = (
        nn.Sequential(m.conv1, m.maxpool, m.layer1[0], m.global_pool, nn.Linear(4, 3).double())
        for m in pair(extent=extent)
    )
    ours[-1].load_state_dict(plain[-1].state_dict())
    torch._dynamo.reset()
    ours.compile(backend="aot_eager", fullgraph=True)
    assert_same(step(ours), step(plain), rtol=1e-7, atol=1e-9)
    assert not fused
    assert list(ours.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
def test_the_whole_network_compiled_by_inductor():
    plain, ours = pair()
    torch._dynamo.reset()
    ours.compile()
    assert_same(step(ours), step(plain), rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_training_step_with_compiled_tails(memory_format, fused):
    plain, ours = (m.to(memory_format=memory_format) for m in pair())
    assert_same(step(ours, memory_format), step(plain, memory_format), rtol=1e-7, atol=1e-9)
    assert len(fused) == 8
    assert tail.tail_failure() is None


def _rank(rank, init, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init}", rank=rank, world_size=2)
    found = []
    for model in pair():
        torch.manual_seed(rank)
        model = DistributedDataParallel(model)
        x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        model(x).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    torch.save(found, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_of_ddp(tmp_path):
    mp.spawn(_rank, (tmp_path / "init", tmp_path), nprocs=2)
    (plain, ours), (_, ours_there) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for a, b, c in zip(plain, ours, ours_there, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-9)
        assert torch.equal(b, c)


def test_networks_that_need_no_fused_tail_keep_their_forward():
    with torch.device("meta"):
        for options in ({"implementation": "reference"}, {"pool": "max"}, {"pool": "max", "extent": 8}):
            assert "forward" not in vars(build_model("resnet50", ge="theta_minus", **options).layer1[0])
        for extent in ("global", 8):
            assert "forward" in vars(build_model("resnet50", ge="theta_minus", extent=extent).layer1[0])
        assert "forward" not in vars(build_model("resnet20", ge="theta_minus").layer1[0])
