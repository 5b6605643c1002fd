"""Fields of networks whose receptive field is known to the pixel, and the areas of maps made by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from geexp import build_model
from geexp.analysis.receptive_field import area_holding, effective_receptive_field
from geexp.operators import GatherExcite


class TwoConvolutions(nn.Module):
    """Two 3x3 convolutions, the blocks conv2_1 and conv3_1, and what a field must not need."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer1 = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 3, 3, padding=1))

    def forward(self, x):
        self.layer2(self.layer1(x))
        raise AssertionError("nothing behind the block is to be run")


def images(n=3, channels=2, size=(11, 12)):
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(0))


def batches(*images):
    return [(some, torch.zeros(len(some), dtype=torch.int64)) for some in images]


@pytest.mark.parametrize(("block", "radius"), [("conv2_1", 1), ("conv3_1", 2)])
def test_the_support_of_two_convolutions(block, radius):
    field = effective_receptive_field(TwoConvolutions(), batches(images()), block=block)
    assert field.dtype == np.float64
    assert field.sum() == pytest.approx(1, abs=1e-12)
    inside = np.zeros((11, 12), dtype=bool)
    inside[5 - radius : 6 + radius, 6 - radius : 7 + radius] = True
    assert np.array_equal(field > 0, inside)
    assert area_holding(field, 1) == (2 * radius + 1) ** 2


def test_the_values_are_those_of_the_weights():
    """For one convolution the gradient is its kernel, the same for every image."""
    model = TwoConvolutions()
    field = effective_receptive_field(model, batches(images()), block="conv2_1")
    kernel = model.layer1[0].weight.detach().double().sum(0).abs().mean(0).numpy()
    np.testing.assert_allclose(field[4:7, 5:8], kernel / kernel.sum(), rtol=1e-5)


def test_images_are_averaged_after_their_absolute_values():
    """Gradients of opposite sign: of |x| at 1 and at -1."""

    class Absolute(TwoConvolutions):
        def forward(self, x):
            return super().forward(x.abs())

    pair = torch.stack([torch.ones(2, 11, 12), -torch.ones(2, 11, 12)])
    for blocks in (batches(pair), batches(pair[:1], pair[1:])):
        field = effective_receptive_field(Absolute(), blocks, block="conv2_1")
        plain = effective_receptive_field(TwoConvolutions(), batches(images()), block="conv2_1")
        np.testing.assert_allclose(field, plain, rtol=1e-5)


def test_a_global_gate_looks_at_the_whole_image():
    model = TwoConvolutions()
    small = effective_receptive_field(model, batches(images()), block="conv2_1")
    model.layer1.append(GatherExcite(4, variant="theta_minus", extent="global"))
    field = effective_receptive_field(model, batches(images()), block="conv2_2")
    assert (field > 0).all()
    assert area_holding(field) > area_holding(small)


@pytest.mark.parametrize("name", ["resnet8", "shufflenet_g3"])
def test_of_our_networks(name):
    model = build_model(name, ge="se", num_classes=5).eval()
    field = effective_receptive_field(model, batches(images(2, 3, (32, 32))), block="conv4_1")
    assert field.shape == (32, 32)
    assert field.sum() == pytest.approx(1)
    assert (field > 0).mean() > 0.95
    model = build_model(name, num_classes=5)
    assert (effective_receptive_field(model, batches(images(2, 3, (64, 64))), block="conv2_1") == 0).any()


def test_areas_of_maps_made_by_hand():
    uniform, point = np.full((10, 10), 0.01), np.zeros((10, 10))
    point[3, 7] = 1
    assert [area_holding(uniform, share) for share in (0.001, 0.01, 0.07, 0.5, 0.95, 1)] == [1, 1, 7, 50, 95, 100]
    assert area_holding(point) == area_holding(point, 1) == 1
    assert area_holding(np.array([[0.1, 0.6], [0.0, 0.3]]), 0.7) == 2
    for share in (0, -0.5, 1.1, 95):
        with pytest.raises(ValueError, match=f"share={share}"):
            area_holding(uniform, share)


def test_says_what_is_wrong():
    model = TwoConvolutions()
    with pytest.raises(ValueError, match="no block 'conv4_1': the blocks are conv2_1, conv3_1"):
        effective_receptive_field(model, batches(images()), block="conv4_1")
    with pytest.raises(ValueError, match="images of 9x9 and of 11x12"):
        effective_receptive_field(model, batches(images(), images(size=(9, 9))), block="conv2_1")
    nn.init.zeros_(model.layer1[0].weight)
    with pytest.raises(ValueError, match=r"conv3_1: the gradient is zero everywhere.*dead"):
        effective_receptive_field(model, batches(images()), block="conv3_1")
    nn.init.constant_(model.layer1[0].weight, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        effective_receptive_field(model, batches(images()), block="conv2_1")
