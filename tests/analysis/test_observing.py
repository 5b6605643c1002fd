"""What all analyses promise: the network is left as it was, compiled or not, and ranks share the images."""

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from geexp import add_gather_excite, build_model
from geexp.analysis.gates import gate_distribution
from geexp.analysis.observing import over_ranks
from geexp.analysis.pruning import branch_removal, importance_pruning
from geexp.analysis.receptive_field import effective_receptive_field
from geexp.analysis.selectivity import class_selectivity

CLASSES = 4


def selectivity(model, batches):
    return list(class_selectivity(model, batches, num_classes=CLASSES, blocks=["conv3_1", "conv4_1"]).values())


def gates(model, batches):
    return list(gate_distribution(model, batches, num_classes=CLASSES, bins=10).values())


def receptive_field(model, batches):
    return [pd.DataFrame(effective_receptive_field(model, batches, block="conv3_1"))]


def pruning(model, batches):
    pruned = importance_pruning(model, batches, blocks=["conv3_1", "conv4_1"], ratios=(0, 0.5, 1))
    return [pruned, branch_removal(model, batches, blocks=["conv3_1"])]


ANALYSES = (selectivity, gates, receptive_field, pruning)


def network():
    torch.manual_seed(1)
    return build_model("resnet8", ge="theta", extent=2, num_classes=CLASSES)


def make_batches():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) ** 2 % 3
    images = torch.randn(30, 3, 16, 16, generator=generator) + labels[:, None, None, None]
    return list(zip(images.split(6), labels.split(6), strict=True))


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("analysis", ANALYSES)
def test_network_is_left_as_it_was(analysis, broken):
    model = network().train()
    model.bn.eval()  # frozen, as in detection
    kept, other, *_ = model.parameters()
    kept.grad = torch.ones_like(kept)
    other.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    described = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    batches = make_batches()
    if broken:
        batches.append((batches[0][0][:, :1], batches[0][1]))  # one channel instead of three
        with pytest.raises(RuntimeError):
            analysis(model, batches)
    else:
        analysis(model, batches)
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == described
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert kept.grad.eq(1).all()
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not kept)
    assert not any(images.requires_grad for images, _ in batches)


@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_compiled_network(analysis):
    model, batches = network().eval(), make_batches()
    want = analysis(model, batches)
    model.compile(backend="eager")
    with torch.no_grad():
        model(batches[0][0])  # compiled without hooks, for exactly such a call
    for got, expected in zip(analysis(model, batches), want, strict=True):
        pd.testing.assert_frame_equal(got, expected)


@pytest.mark.parametrize("analysis", ANALYSES)
def test_no_images(analysis):
    with pytest.raises(ValueError, match="no images"):
        analysis(network(), [])


class Block(nn.Module):
    """A user's pre-activation block."""

    def __init__(self):
        super().__init__()
        self.relu, self.conv, self.ge = nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.Identity()

    def shortcut(self, x):
        return x

    def join(self, branch, shortcut):
        return branch + shortcut

    def forward(self, x):
        return self.join(self.ge(self.conv(self.relu(x))), self.shortcut(x))


class Network(nn.Module):
    """A user's pre-activation network."""

    preactivated = True

    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = nn.Sequential(Block()), nn.Sequential(Block(), Block())
        self.relu = nn.ReLU()

    def after_stages(self, x):
        return self.relu(x)

    def forward_head(self, x):
        return x.mean((2, 3))

    def forward(self, x):
        return self.forward_head(self.after_stages(self.layer2(self.layer1(x))))


def test_pre_activation_network_of_a_user():
    torch.manual_seed(1)
    model = add_gather_excite(Network(), variant="theta_minus", image_size=16).eval()
    images, labels = make_batches()[0]
    names = ["conv2_1", "conv3_2"]
    found = class_selectivity(model, [(images, labels)], num_classes=CLASSES, blocks=names)["features"]
    with torch.no_grad():
        first = model.layer1(images)
        outputs = {"conv2_1": first, "conv3_2": model.layer2(first)}
        answers = model(images).argmax(1)
    for name in names:
        means = torch.stack([outputs[name].relu().mean((2, 3))[labels == c].mean(0) for c in labels.unique()])
        got = found[found["block"] == name]
        assert list(got["mean_max"]) == pytest.approx(means.max(0).values.tolist(), rel=1e-4)
    table = importance_pruning(model, [(images, answers)], blocks=names, ratios=[0])
    assert (table["correct"] == len(images)).all()
    assert len(gate_distribution(model, [(images, labels)], num_classes=CLASSES)["channels"]) == 9


class Gated(nn.Module):
    """A user's operator that shows its gate, one number per channel."""

    def __init__(self, channels, *, size):
        super().__init__()
        self.channels, self.weight = channels, nn.Parameter(torch.linspace(0.1, 0.9, channels))

    def gate(self, x):
        return self.weight[:, None, None].expand(len(x), -1, 1, 1)

    def forward(self, x):
        return x * self.gate(x)


class Scale(nn.Module):
    """A user's operator that does not show its gate."""

    def __init__(self, channels, *, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * self.weight


def test_operator_of_a_user():
    batches = make_batches()
    model = add_gather_excite(build_model("resnet8", num_classes=CLASSES), operator=Gated, image_size=16)
    found = gate_distribution(model, batches, num_classes=CLASSES)["channels"]
    assert list(found["mean"][:16]) == pytest.approx(torch.linspace(0.1, 0.9, 16).tolist())
    table = importance_pruning(model, batches, blocks=["conv4_1"], ratios=[0, 0.5, 1])
    assert list(table["dropped"]) == [0, 32, 64] * 2
    model = add_gather_excite(build_model("resnet8", num_classes=CLASSES), operator=Scale, image_size=16)
    for analysis in (gates, pruning):
        with pytest.raises(ValueError, match=r"block conv\d_1 .*holds a Scale, .*gate\(x\)"):
            analysis(model, batches)


def everything(batches):
    return [table for analysis in ANALYSES for table in analysis(network(), batches)]


def as_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    pair = torch.tensor([rank, -rank])
    assert [over_ranks(pair, f).tolist() for f in ("SUM", "MIN", "MAX")] == [[1, -1], [0, -1], [1, 0]]
    assert pair.tolist() == [rank, -rank]
    shared = make_batches()
    pd.to_pickle(everything(shared[rank::2]), f"{folder}/shared{rank}")
    pd.to_pickle(everything(shared if rank == 1 else []), f"{folder}/one_has_all{rank}")
    with pytest.raises(ValueError, match="no images"):
        everything([])
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        want = everything(make_batches())
    finally:
        torch.set_num_threads(threads)
    mp.spawn(as_rank, (str(tmp_path),), nprocs=2)
    for name in ("shared0", "shared1", "one_has_all0", "one_has_all1"):
        for got, expected in zip(pd.read_pickle(tmp_path / name), want, strict=True):
            # Float64 sums in another order; if one rank has all images, in the same order.
            pd.testing.assert_frame_equal(got, expected, rtol=1e-12, atol=1e-12, check_exact=name.startswith("one"))
    assert not mp.active_children()
