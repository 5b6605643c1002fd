"""Every statistic of the gates against a loop over their values."""

from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from geexp.analysis.gates import gate_distribution
from geexp.backbones import blocks, build_model
from geexp.operators import VARIANTS

BINS = 20


def network(ge, extent="global", stages=None, size=16):
    """Its gates are spread over (0, 1), more so than at the start of training."""
    torch.manual_seed(1)
    model = build_model("resnet8", ge=ge, extent=extent, stages=stages, image_size=size, num_classes=4).eval()
    for block in blocks(model).values():
        for parameter in block.ge.parameters():
            nn.init.normal_(parameter, std=1.5)
    return model


def images_and_labels(n=9, size=16):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0)), torch.arange(n) ** 2 % 4


def gate_values(model, batches):
    """{block: [N, C, cells]}, by the operator's own ``gate``."""
    found = defaultdict(list)
    handles = [
        block.ge.register_forward_hook(lambda ge, x, _out, name=name: found[name].append(ge.gate(x[0]).flatten(2)))
        for name, block in blocks(model).items()
    ]
    for images, _ in batches:
        model(images)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(gates) for name, gates in found.items()}


@pytest.mark.parametrize(("extent", "size"), [(2, 10), ("global", 16)])  # maps of 10, 5 and 3: not all divided by 2
@pytest.mark.parametrize("ge", VARIANTS)
@torch.no_grad()
def test_equals_a_loop(ge, extent, size):
    model = network(ge, extent, size=size)
    images, labels = images_and_labels(size=size)  # of the classes 0 and 1 only
    batches = list(zip(images.split(4), labels.split(4), strict=True))
    result = gate_distribution(model, batches, num_classes=4, bins=BINS)
    values = gate_values(model, batches)
    counts = Counter(
        (block, label, min(int(value * BINS), BINS - 1))
        for block, gate in values.items()
        for label, image in zip(labels.tolist(), gate, strict=True)
        for value in image.flatten().tolist()
    )
    rows = result["histogram"]
    assert len(rows) == len(counts)  # empty bins are left out
    assert rows["count"].dtype == np.int64
    got = {
        (block, label, round(low * BINS)): count
        for block, label, low, count in rows[["block", "class", "low", "count"]].itertuples(index=False)
    }
    assert got == counts
    np.testing.assert_allclose(rows["high"] - rows["low"], 1 / BINS)
    want = [
        (block, int(block[4]), channel, v.mean(), v.std(), v.min(), v.max(), (v < 0.05).mean(), (v > 0.95).mean())
        for block, gate in values.items()
        for channel, v in enumerate(gate.double().transpose(0, 1).flatten(1).numpy())
    ]
    want = pd.DataFrame(want, columns=list(result["channels"].columns[:-1]))
    pd.testing.assert_frame_equal(result["channels"][want.columns], want, rtol=1e-12, check_dtype=False)
    assert (result["channels"]["constant"] == (want["max"] - want["min"] < 0.01)).all()


def test_constant_gates_are_seen():
    """Wide open, shut and half open, whatever the input, beside channels that depend on it."""
    model = network("se")
    *_, final = model.layer3[0].ge.excite.transform
    nn.init.zeros_(final.weight[:3])
    final.bias.data[:3] = torch.tensor([1000.0, -20.0, 0.0])
    found = gate_distribution(model, [images_and_labels(40)], num_classes=4, bins=5)
    histogram, channels = found["histogram"], found["channels"]
    assert histogram["count"].sum() == 40 * (16 + 32 + 64)
    assert histogram[histogram["low"] == 0.8]["count"].sum() >= 40  # the last bin holds 1
    last = channels[channels["block"] == "conv4_1"].set_index("channel")
    assert list(last["constant"][:3]) == [True, True, True]
    assert list(last["share_above"][:3]) == [1, 0, 0]
    assert list(last["share_below"][:3]) == [0, 1, 0]
    assert list(last["mean"][:3]) == pytest.approx([1, 0, 0.5], abs=1e-8)
    assert (last["std"][:3] < 1e-7).all()
    assert not last["constant"][3:].all()


def test_little_variation_beside_a_large_mean_is_not_lost():
    model = network("se").double()
    *_, final = model.layer3[0].ge.excite.transform
    nn.init.normal_(final.weight, std=1e-5)
    nn.init.constant_(final.bias, 4)
    images, labels = images_and_labels(40)
    batches = [(images.double(), labels)]
    channels = gate_distribution(model, batches, num_classes=4)["channels"]
    with torch.no_grad():
        std = gate_values(model, batches)["conv4_1"].flatten(1).numpy().std(axis=0)
    assert std.max() < 1e-5
    np.testing.assert_allclose(channels["std"][channels["block"] == "conv4_1"], std, rtol=1e-2, atol=1e-8)


def test_stages_without_operators_are_left_out():
    channels = gate_distribution(network("theta_plus", 2, [3, 4]), [images_and_labels()], num_classes=4)["channels"]
    assert list(channels["block"].unique()) == ["conv3_1", "conv4_1"]
    assert list(channels["stage"].unique()) == [3, 4]


def test_says_what_is_wrong():
    images, labels = images_and_labels()
    with pytest.raises(ValueError, match=r"no block holds Gather-Excite.*ge=theta_minus"):
        gate_distribution(build_model("resnet8"), [(images, labels)], num_classes=4)
    model = network("theta")
    with pytest.raises(ValueError, match="label 4"):
        gate_distribution(model, [(images, labels + 4)], num_classes=4)
    with pytest.raises(ValueError, match=r"conv2_1: gates are not finite"):
        gate_distribution(model, [(images * torch.nan, labels)], num_classes=4)
