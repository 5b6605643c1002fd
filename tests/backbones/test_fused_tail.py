"""timm's ResNet blocks with a fused tail equal those without, also for hooks, copies, checkpointing and tracing.

The tail itself is compared in tests/operators/test_tail.py. It runs uncompiled except in the slow tests.
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
from geexp.backbones.network_surgery import cut_at
from geexp.operators import VARIANTS, tail_failure
from geexp.operators.gather_excite import GatherExcite
from tests.support.tail import break_compiler, run_uncompiled

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch, request):
    if "slow" not in request.keywords:
        run_uncompiled(monkeypatch)


@pytest.fixture
def fused(monkeypatch):
    """A list with one entry per call of the fused operator."""
    calls = []
    whole = fused_tail.average_excite_tail
    monkeypatch.setattr(fused_tail, "average_excite_tail", lambda *a: calls.append(1) or whole(*a))
    return calls


@pytest.fixture
def logged(monkeypatch, caplog):
    monkeypatch.setattr(fused_tail, "_logged", set())
    caplog.set_level(logging.WARNING)
    return caplog


def pair(name="resnet18"):
    """The same small network twice, with the plain composition and with fused tails, in float64."""
    models = []
    for implementation in ("reference", "fused"):
        torch.manual_seed(0)
        model = timm.create_model(name, channels=(4, 8, 8, 16), num_classes=3)
        add_gather_excite(model, variant="theta_minus", image_size=32, implementation=implementation)
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


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_training_step_is_the_plain_one(name, memory_format, fused):
    plain, ours = (m.to(memory_format=memory_format) for m in pair(name))
    assert_same(step(ours, memory_format), step(plain, memory_format), rtol=1e-7, atol=1e-9)
    assert len(fused) == {"resnet18": 8, "resnet50": 16}[name]
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in ours.modules()] == [type(m) for m in plain.modules()]


def test_with_frozen_bn(fused):
    plain, ours = pair()
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


def test_in_evaluation_the_operations_are_the_plain_ones(fused):
    plain, ours = pair()
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


def test_hooks_on_the_parts_see_them_at_work(fused):
    _, model = pair()
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


@pytest.mark.parametrize(
    "change",
    [
        {"drop_path": nn.Dropout(0.0)},
        {"act2": nn.GELU()},
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
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=3, channels=(4, 8, 8, 16))
    add_gather_excite(model, variant="theta_minus", image_size=32)
    step(model)
    assert not fused
    monkeypatch.setattr(fused_tail, "_LEAST_VALUES_ON_CPU", 3 * 4 * 8 * 8)
    step(model, size=(32, 32))
    assert len(fused) == 2


def test_on_a_cpu_only_the_average_is_fused(fused):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=3, channels=(4, 8, 8, 16))
    step(
        add_gather_excite(model, variant="theta_plus", image_size=32, reduction=2, implementation="fused"),
        size=(32, 32),
    )
    assert not fused


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed(reentrant, fused):
    plain, ours = pair()
    want = step(plain)
    for sequence in (ours.layer1, ours.layer3):
        whole = sequence.forward
        sequence.forward = lambda x, whole=whole: checkpoint(whole, x, use_reentrant=reentrant)
    got = step(ours)
    parameters = dict(ours.named_parameters()).keys()  # BN's statistics are updated twice by a checkpoint
    assert_same({k: got[k] for k in parameters}, {k: want[k] for k in parameters}, rtol=1e-7, atol=1e-9)
    assert len(fused) >= 8


def test_copies_and_pickles_stand_on_their_own(fused):
    _, model = pair()
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


def test_synchronised_bn_is_not_fused_which_is_logged_once(logged, fused):
    _, model = pair()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()  # which trains on GPUs only
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        model(x).sum().backward()
    assert not fused
    assert len([record for record in logged.records if "SyncBatchNorm" in record.message]) == 1


def test_without_a_compiler_it_continues_and_logs_so_once(logged, monkeypatch):
    break_compiler(monkeypatch)
    assert tail_failure() is None
    plain, ours = pair()
    for _ in range(2):
        assert_same(step(ours), step(plain), rtol=1e-7, atol=1e-9)
    assert "No working C++ compiler found" in str(tail_failure())
    (record,) = logged.records
    assert "No working C++ compiler found" in record.message
    assert "ge.implementation=reference" in record.message


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


def test_the_whole_network_compiled(fused):
    plain, ours = (
        nn.Sequential(m.conv1, m.maxpool, m.layer1[0], m.global_pool, nn.Linear(4, 3).double()) for m in pair()
    )
    ours[-1].load_state_dict(plain[-1].state_dict())
    torch._dynamo.reset()
    ours.compile(backend="aot_eager", fullgraph=True)
    assert_same(step(ours), step(plain), rtol=1e-7, atol=1e-9)
    assert not fused
    assert list(ours.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_training_step_with_compiled_tails(memory_format, fused):
    plain, ours = (m.to(memory_format=memory_format) for m in pair())
    assert_same(step(ours, memory_format), step(plain, memory_format), rtol=1e-7, atol=1e-9)
    assert len(fused) == 8
    assert tail_failure() is None


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


def test_only_in_timms_blocks_and_not_with_max_pooling_forward_is_replaced():
    with torch.device("meta"):
        for name, options in [
            ("resnet50", {"implementation": "reference"}),
            ("resnet50", {"pool": "max"}),
            ("resnet50", {"pool": "max", "extent": 8}),
            ("resnet20", {}),
        ]:
            assert "forward" not in vars(build_model(name, ge="theta_minus", **options).layer1[0])
        for ge in VARIANTS:
            for extent in (8, "global"):
                assert "forward" in vars(build_model("resnet50", ge=ge, extent=extent).layer1[0])
