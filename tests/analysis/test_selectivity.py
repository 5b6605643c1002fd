"""The index against its definition in NumPy, on networks of every family and on features whose index is known."""

import weakref

import numpy as np
import pytest
import timm
import torch
from torch import nn

from geexp.analysis.observing import observe
from geexp.analysis.selectivity import class_selectivity
from geexp.backbones import add_gather_excite, block_outputs, blocks, build_model


def images_and_labels(n=24, classes=5, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) ** 2 % classes  # unequal classes: 2 and 3 get no image where classes=5
    return torch.randn(n, 3, size, size, generator=generator) + labels[:, None, None, None] / 2, labels


def in_batches(images, labels, size):
    return list(zip(images.split(size), labels.split(size), strict=True))


def randomised(name, **options):
    """A network whose BNs are away from their initial values, so that features differ and some are dead."""
    torch.manual_seed(1)
    if name == "timm":  # ResNet-50's blocks, small
        sizes = {"layers": (1, 1, 2, 1), "channels": (8, 16, 16, 32), "stem_width": 8}
        model = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, num_classes=5, **sizes).eval()
        add_gather_excite(model, variant=options["ge"])
    else:
        model = build_model(name, num_classes=5, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.5)
    return model


def reference(maps, labels):
    """{channel: (index, preferred class, µ_max, µ_rest)} of the live channels; ``maps`` [N, C, h, w]."""
    activations = maps.double().numpy().mean(axis=(2, 3))
    rows = {}
    for channel in range(activations.shape[1]):
        means = {c: activations[labels.numpy() == c, channel].mean() for c in sorted(set(labels.tolist()))}
        best = max(means, key=lambda c: means[c])
        rest = np.mean([mean for c, mean in means.items() if c != best])
        if means[best] > 0:
            rows[channel] = ((means[best] - rest) / (means[best] + rest), best, means[best], rest)
    return rows


def rectified(model, name, images):
    """A block's output behind its ReLU, computed from the block's own output."""
    output = block_outputs(model, images, [name])[name]
    if not hasattr(model.layer1[0], "branch"):
        return output
    names = list(blocks(model))
    following = [*list(blocks(model).values())[1:], None][names.index(name)]
    return (model.bn if following is None else following.bn1)(output).relu()


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("resnet8", None),
        ("resnet8", ["conv2_1", "conv3_1", "conv4_1"]),  # the ReLU behind a block is in the next stage
        ("resnet20", ["conv4_3", "conv2_2"]),
        ("timm", ["conv4_2", "conv5_1"]),
        ("shufflenet_g3", ["conv2_1", "conv4_4"]),
    ],
)
@torch.no_grad()
def test_equals_its_definition(name, chosen):
    size = 16 if name in ("resnet8", "resnet20") else 32
    model = randomised(name, ge="theta_minus")
    images, labels = images_and_labels(size=size)
    result = class_selectivity(model, in_batches(images, labels, 7), num_classes=5, blocks=chosen)
    assert list(result["blocks"]["block"]) == (chosen or ["conv4_1"])
    for block in result["blocks"].itertuples():
        maps = torch.cat([rectified(model, block.block, part) for part in images.split(7)])  # to the same roundings
        want = reference(maps, labels)
        got = result["features"][result["features"]["block"] == block.block]
        assert (block.features, block.dead) == (maps.shape[1], maps.shape[1] - len(want))
        assert (block.images, block.classes) == (24, 3)
        assert list(got["channel"]) == list(want)
        columns = ["selectivity", "preferred_class", "mean_max", "mean_rest"]
        np.testing.assert_allclose(got[columns].to_numpy(float), list(want.values()), rtol=1e-9, atol=1e-12)
        assert block.mean_selectivity == pytest.approx(got["selectivity"].mean())
        assert block.median_selectivity == pytest.approx(got["selectivity"].median())
        assert got["selectivity"].between(0, 1).all()


class Features(nn.Module):
    """Its last block's channels are the channels of the image; ``ending`` is what the block ends in."""

    def __init__(self, ending=nn.ReLU):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.layer1 = nn.Sequential(nn.Identity())
        self.layer2 = nn.Sequential(nn.Identity())
        self.layer3 = nn.Sequential(nn.Identity(), ending())

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(x * self.scale)))
        x += 100  # what follows may overwrite the output
        return x.mean((2, 3))


def test_features_of_known_index():
    """Classes 0, 2 and 4 of five, with one, two and three images."""
    labels = torch.tensor([2, 4, 4, 0, 2, 4])
    fires_for = {
        "constant": dict.fromkeys((0, 2, 4), 0.1),  # three times 0.1 in binary is not 0.3
        "one class": {0: 0, 2: 7.5, 4: 0},
        "dead": {0: 0, 2: -1, 4: 0},
        "three to one": {0: 1, 2: 1, 4: 3},
        "classes weigh the same": {0: 4, 2: 2, 4: 0},  # 1/3; were images weighed, 4/5 would be the others' mean: 2/3
    }
    images = torch.tensor([[means[int(label)] for means in fires_for.values()] for label in labels])
    images = images[:, :, None, None] * torch.tensor([0.5, 0, 2, 1.5])  # a mean of 1 over the width
    result = class_selectivity(Features(), [(images, labels)], num_classes=5, blocks=["conv4_2"])
    rows = result["features"].set_index("channel")
    assert list(rows.index) == [0, 1, 3, 4]
    assert list(rows["selectivity"]) == pytest.approx([0, 1, 1 / 2, 3 / 5])
    assert rows["selectivity"][1] == 1
    assert list(rows["preferred_class"])[1:] == [2, 4, 0]
    (block,) = result["blocks"].itertuples()
    assert (block.features, block.dead, block.images, block.classes) == (5, 1, 6, 3)
    assert not result["features"].isna().any().any()


def test_a_block_of_dead_features_has_no_mean():
    images, labels = images_and_labels()
    result = class_selectivity(Features(), [(-images.abs(), labels)], num_classes=5, blocks=["conv4_2"])
    assert result["features"].empty
    (block,) = result["blocks"].itertuples()
    assert (block.features, block.dead) == (3, 3)
    assert np.isnan([block.mean_selectivity, block.median_selectivity]).all()


def test_large_outputs_are_shown_in_parts():
    """Each part comes with its labels, and every image once."""
    images, labels = torch.randn(6, 3, 300, 300).abs(), torch.tensor([0, 1, 2, 0, 1, 2])
    seen = []
    model = Features()
    part = {"": model.layer3}
    counts = observe(
        model, [(images, labels)], part, lambda _n, out, its: seen.append((out.clone(), its)), num_classes=3
    )
    assert [len(its) for _, its in seen] == [1] * 6
    assert torch.equal(torch.cat([its for _, its in seen]), labels)
    assert torch.equal(torch.cat([out for out, _ in seen]), images)
    assert counts.tolist() == [2, 2, 2]


def test_nothing_of_earlier_batches_is_kept():
    model = randomised("resnet8")
    alive = []
    for module in model.modules():
        module.register_forward_hook(lambda _m, _i, output: alive.append(weakref.ref(output)))
    living = []

    def batches():
        for seed in range(4):
            images, labels = images_and_labels(seed=seed)
            living.append(sum(output() is not None for output in alive))
            yield images, labels

    class_selectivity(model, batches(), num_classes=5)
    assert len(alive) > 80
    assert living == [0] * 4


def test_says_what_is_wrong():
    model = randomised("resnet8")
    images, labels = images_and_labels()

    def measure(labels=labels, model=model, images=images, **options):
        return class_selectivity(model, [(images, labels)], num_classes=5, **options)

    with pytest.raises(ValueError, match="label 5: with num_classes=5 labels go from 0 to 4"):
        measure(labels + 1)
    with pytest.raises(ValueError, match="label -1"):
        measure(labels - 1)
    with pytest.raises(ValueError, match=r"all images are of class 3.*at least two"):
        measure(torch.full_like(labels, 3))
    with pytest.raises(ValueError, match="no block 'conv4_2': the blocks are conv2_1, conv3_1, conv4_1"):
        measure(blocks=["conv4_2"])
    with pytest.raises(ValueError, match="stage 4: name some of conv2_1"):
        measure(blocks=[])
    with pytest.raises(ValueError, match=r"block conv4_1: the mean activation of channel \d is -.*rectified"):
        measure(model=Features())
    nn.init.constant_(model.layer1[0].branch[0].weight, torch.nan)
    with pytest.raises(ValueError, match=r"conv4_1.*not finite"):
        measure()
