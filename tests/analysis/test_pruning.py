"""Pruning by importance against whole networks run image by image with masks made of loops."""

import pytest
import timm
import torch
from timm.models.res2net import Bottle2neck
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from geexp import add_gather_excite, build_model
from geexp.analysis.pruning import ORDERS, branch_removal, importance_pruning
from geexp.backbones import blocks
from geexp.backbones.anatomy import slot
from geexp.backbones.network_surgery import blocks_with_sum, cut_at
from geexp.operators import VARIANTS

CLASSES = 5


def shaken(model):
    """The model with every BN and gate away from its initial value; gates are spread over (0, 1)."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high, generator=generator)
        elif hasattr(module, "transform"):
            for parameter in module.transform.parameters():
                nn.init.normal_(parameter, std=1.0, generator=generator)
    nn.init.normal_(model.fc.weight, generator=generator)
    return model


def preact(ge="theta", extent="global", size=20, **options):
    """Maps of 20, 10 and 5 pixels: with extent 2 the last one's cells are of different sizes."""
    torch.manual_seed(1)
    model = build_model("resnet8", ge=ge, extent=extent, image_size=size, num_classes=CLASSES, **options)
    return shaken(model).eval()


def timms(block=Bottleneck, ge="theta", extent="global", size=64, **options):
    """timm's ResNet with few blocks and few channels."""
    torch.manual_seed(1)
    model = ResNet(block, (1, 2, 2, 1), num_classes=CLASSES, channels=(8, 8, 16, 16), zero_init_last=False, **options)
    if ge != "none":
        add_gather_excite(model, variant=ge, extent=extent, image_size=size)
    return shaken(model).eval()


def shufflenet(ge="theta", extent="global"):
    torch.manual_seed(1)
    return shaken(build_model("shufflenet_g3", ge=ge, extent=extent, image_size=64, num_classes=CLASSES)).eval()


def pictures(n, size=20, channels=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, channels, size, size, generator=generator) * 2
    return images, torch.randint(CLASSES, (n,), generator=generator)


def own_answers(model, images):
    """The network's predictions, after its classifier's bias has been shifted so that they differ among the images.
    With these as labels every prediction that changes is seen."""
    images = images.to(model.fc.bias)
    with torch.no_grad():
        model.fc.bias -= model(images).mean(0)
        return model(images).argmax(1)


def batched(images, labels, size=4):
    return list(zip(images.split(size), labels.split(size), strict=True))


def operator_of(model, name):
    block = blocks(model)[name]
    return getattr(block, slot(block))


def predictions(model, images, name, replaced):
    """The network's predictions with ``replaced(inputs, output)`` in place of the slot's output in the named block."""
    handle = operator_of(model, name).register_forward_hook(lambda _m, inputs, output: replaced(inputs[0], output))
    try:
        with torch.no_grad():
            return torch.cat([model(some).argmax(1) for some in images])
    finally:
        handle.remove()


def slow_correct(model, images, labels, name, order, dropped):
    """One image after the other through the whole network; the gate is gathered again and its mean taken by loops."""
    operator = operator_of(model, name)

    def masked(x, output):
        gate, (height, width) = operator.gate(x)[0], x.shape[2:]
        h, w = gate.shape[1:]
        importance = [
            sum(values[i * h // height][j * w // width] for i in range(height) for j in range(width))
            for values in gate.tolist()
        ]
        sign = 1 if order == "ascending" else -1
        gone = sorted(range(len(importance)), key=lambda c: (sign * importance[c], c))[:dropped]
        output = output.clone()
        output[0, gone] = 0
        return output

    return int((predictions(model, images.split(1), name, masked) == labels).sum())


CASES = [
    *((preact, ge, extent, 20, ["conv3_1", "conv4_1"]) for ge in VARIANTS for extent in ("global", 2)),
    *((timms, ge, extent, 64, ["conv4_1", "conv4_2"]) for ge, extent in (("theta", "global"), ("theta_plus", 2))),
    (timms, "theta_minus", "global", 64, ["conv3_2", "conv5_1"]),
    (timms, "se", 2, 64, ["conv3_1"]),
    (shufflenet, "se", "global", 64, ["conv4_2"]),
    (shufflenet, "theta_minus", 2, 64, ["conv3_8"]),
]


@pytest.mark.parametrize(("network", "ge", "extent", "size", "names"), CASES)
def test_against_whole_networks_image_by_image(network, ge, extent, size, names):
    # In float64 no two channels are so equally important that batches decide which goes first.
    model = network(ge=ge, extent=extent).double()
    images, _ = pictures(10 if network is preact else 6, size)
    labels = own_answers(model, images)
    ratios = (0, 0.3, 0.7, 1)
    table = importance_pruning(model, batched(images, labels), blocks=names, ratios=ratios)
    assert list(table.block) == [name for name in names for _ in range(8)]
    assert list(table.order) == [order for _ in names for order in ORDERS for _ in ratios]
    assert list(table.ratio) == list(ratios) * 2 * len(names)
    assert (table.dropped == (table.ratio * table.channels).round()).all()
    assert (table.images == len(images)).all()
    assert (table.top1_accuracy == 100 * table.correct / len(images)).all()
    for row in table.itertuples():
        assert row.channels == operator_of(model, row.block).channels
        if row.ratio == 0 and row.order == "descending":
            continue  # nothing is dropped, once more
        want = slow_correct(model, images.double(), labels, row.block, row.order, row.dropped)
        assert row.correct == want, row
    assert table.correct.nunique() > 1, table


NETWORKS = {
    "preact": (preact, 20),
    "wide maps": (lambda: preact(size=(20, 12), ge="theta_plus"), (20, 12)),
    "bottleneck": (timms, 64),
    "basic": (lambda: timms(BasicBlock, "theta", 2), 64),
    "resnext": (lambda: timms(cardinality=2, base_width=32), 64),
    "resnet d": (lambda: timms(stem_type="deep", stem_width=8, avg_down=True, drop_path_rate=0.5), 64),
    "res2net": (lambda: timms(Bottle2neck, "se", base_width=26, block_args={"scale": 4}), 64),
    "shufflenet": (shufflenet, 64),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_ends_are_the_network_and_its_identity_path_to_the_last_bit(kind, layout):
    make, size = NETWORKS[kind]
    model = make().to(memory_format=layout)
    height, width = (size, size) if isinstance(size, int) else size
    images = (torch.randn(6, 3, height, width) * 2).contiguous(memory_format=layout)
    name = [name for name in blocks_with_sum(model) if name.startswith("conv3")][-1]

    caught = {}
    handles = [
        blocks(model)[name].register_forward_pre_hook(lambda _m, inputs: caught.update(x=inputs[0])),
        operator_of(model, name).register_forward_hook(lambda _m, _i, output: caught.update(branch=output.clone())),
    ]
    with torch.no_grad():
        logits = model(images)
        for handle in handles:
            handle.remove()
        shortcut, join, rest = cut_at(model, name)
        ones = torch.ones(*caught["branch"].shape[:2], 1, 1)
        assert rest(join(caught["branch"] * ones, shortcut(caught["x"]))).equal(logits)

    without = predictions(model, [images], name, lambda _x, output: torch.zeros_like(output))
    whole = logits.argmax(1)
    for labels, ratio in ((whole, 0), (without, 1)):
        for analysis, rows in ((importance_pruning, 2), (branch_removal, 1)):
            table = analysis(model, [(images, labels)], blocks=[name])
            ends = table[table.ratio == ratio]
            assert list(ends.correct) == [6] * rows
            assert list(ends.top1_accuracy) == [100.0] * rows


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_under_autocast_the_ends_are_those_of_the_network_under_autocast(precision):
    for model, size in ((preact("se", 2), 20), (timms(ge="se", extent=2), 64)):
        images, _ = pictures(8, size)
        with torch.autocast("cpu", precision):
            for ratio, factor in ((0, 1), (1, 0)):
                labels = predictions(model, [images], "conv3_1", lambda _x, output, factor=factor: output * factor)
                table = importance_pruning(model, [(images, labels)], blocks=["conv3_1"], ratios=[ratio])
                assert list(table.correct) == [8, 8]


def kept_channels(logits, ratio, order):
    """Which channels of conv4_1 are kept, for gates made by hand: the same for every image, of global extent."""
    model = preact(shortcut="B")
    block, kept = blocks(model)["conv4_1"], []
    nn.init.zeros_(block.projection.weight)  # the sum is the branch alone
    norm = block.ge.gather[1]
    nn.init.zeros_(norm.weight)
    with torch.no_grad():
        norm.bias.copy_(logits)
    handle = model.bn.register_forward_pre_hook(lambda _m, inputs: kept.append(inputs[0].abs().amax((0, 2, 3)) > 0))
    table = importance_pruning(model, [pictures(3)], blocks=["conv4_1"], ratios=[ratio])
    handle.remove()
    whole, *pruned = kept
    assert whole.all()
    assert len(pruned) == 2
    assert (table.dropped == 64 - pruned[0].sum().item()).all()
    return set(pruned[ORDERS.index(order)].nonzero().flatten().tolist())


def test_gates_made_by_hand():
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    logits = (shuffled - 32.0) / 8
    assert kept_channels(logits, 0.25, "ascending") == set((shuffled >= 16).nonzero().flatten().tolist())
    assert kept_channels(logits, 0.25, "descending") == set((shuffled < 48).nonzero().flatten().tolist())
    equal = torch.zeros(64)
    assert kept_channels(equal, 0.5, "ascending") == kept_channels(equal, 0.5, "descending") == set(range(32, 64))


def test_each_distinct_mask_is_run_once():
    model, runs = preact(), []
    handle = model.fc.register_forward_hook(lambda *_: runs.append(1))
    table = importance_pruning(model, [pictures(2)], blocks=["conv3_1", "conv4_1"])
    assert len(runs) == 1 + 2 * (9 * 2 + 1)
    runs.clear()
    table = importance_pruning(model, [pictures(2)], blocks=["conv4_1"] * 2, ratios=[0, 0.5, 0.501, 0.5, 0.999])
    assert len(runs) == 1 + 2 * 3
    assert list(table.dropped) == [0, 32, 32, 32, 64] * 2
    handle.remove()


def test_reference_points_of_the_baseline():
    """The same numbers as from a network whose branch is zeroed where Gather-Excite would stand."""
    for model, size in ((preact("none"), 20), (timms(ge="none"), 64)):
        images, _ = pictures(24, size)
        labels = own_answers(model, images)
        names = ["conv3_1", "conv4_1"]
        table = branch_removal(model, batched(images, labels, 8), blocks=names)
        assert list(table.columns) == ["block", "order", "ratio", "correct", "images", "top1_accuracy"]
        assert [tuple(row) for row in table[["block", "ratio"]].values] == [(n, r) for n in names for r in (0, 1)]
        for name in names:
            setattr(blocks(model)[name], slot(blocks(model)[name]), nn.Identity())
        for row in table.itertuples():
            want = predictions(model, images.split(8), row.block, lambda _x, y, row=row: y * (1 - row.ratio))
            assert row.correct == (want == labels).sum()
        assert table.correct.nunique() > 1, table


def test_refusals():
    theta, plain = preact(stages=[3]), preact("none")
    batches = [pictures(2)]
    with pytest.raises(ValueError, match=r"no block 'conv9_1': the blocks are conv2_1, conv3_1, conv4_1"):
        importance_pruning(theta, batches, blocks=["conv9_1"])
    with pytest.raises(ValueError, match=r"conv4_1 of this network holds no Gather-Excite.*Choose from conv3_1$"):
        importance_pruning(theta, batches, blocks=["conv3_1", "conv4_1"])
    with pytest.raises(ValueError, match=r"holds no Gather-Excite.*branch_removal"):
        importance_pruning(plain, batches, blocks=["conv4_1"])
    for ratios in ([0, 1.1], [-0.1], [float("nan")], []):
        with pytest.raises(ValueError, match=r"ratios=\[.*from 0 to 1"):
            importance_pruning(theta, batches, blocks=["conv3_1"], ratios=ratios)
    for analysis in (importance_pruning, branch_removal):
        with pytest.raises(ValueError, match="no block 'conv2_2'"):
            analysis(theta, batches, blocks=["conv2_2"])
        with pytest.raises(ValueError, match=r"blocks=\[\]"):
            analysis(theta, batches, blocks=[])
        with pytest.raises(ValueError, match=r"conv3_1 concatenates .* Choose from conv2_2, .*conv3_2"):
            analysis(shufflenet("theta_minus"), batches, blocks=["conv3_1"])
        with pytest.raises(ValueError, match=r"a SelectiveKernelBasic, .*another network"):
            analysis(timm.create_model("skresnet18"), batches, blocks=["conv3_1"])
        with pytest.raises(ValueError, match="FeatureListNet has no forward_head"):
            analysis(timm.create_model("resnetrs50", features_only=True), batches, blocks=["conv3_1"])
