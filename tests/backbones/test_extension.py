"""What users can add without touching geexp: an operator, a backbone, any network of timm's ResNet family."""

import sys

import pytest
import torch

from geexp.backbones import blocks
from geexp.config.errors import ConfigError
from geexp.training.network import count_run, network_of
from tests.support.configuration import train_config
from tests.support.outside import write_outside

MODULE = """
import torch
from mine import Block, Tiny
from torch import nn


class Scale(nn.Module):
    def __init__(self, channels, *, extent, size, start=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), start))
        self.extent, self.size = extent, size

    def forward(self, x):
        return x * self.weight


class Shrinking(Scale):
    def forward(self, x):
        return x[:, :, ::2]


def no_module(channels, **settings):
    return len(settings)


class NoSlots(Tiny):
    def __init__(self, **settings):
        super().__init__(**settings)
        del self.layer2[0].ge
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """``mine("ge", "_target_: …")``: the overrides that choose the option ``mine`` of a group, with that content."""
    write_outside(tmp_path)
    (tmp_path / "extension.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def choose(group, *lines):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text("\n".join(lines) + "\n")
        return [f"hydra.searchpath=[file://{tmp_path}]", f"{group}=mine"]

    yield choose
    for name in ("mine", "extension"):
        sys.modules.pop(name, None)


def learns(network, channels, size):
    network(torch.randn(2, channels, size, size)).square().sum().backward()
    return all(parameter.grad is not None for parameter in network.parameters())


def test_operator_of_a_user(mine):
    chosen = mine("ge", "_target_: extension.Scale", "variant: scale", "start: 0.5")
    config = train_config(*chosen, "ge.extent=4", "ge.start=0.25", "model=resnet8")
    network, again = network_of(config), network_of(config)
    operators = {name: block.ge for name, block in blocks(network).items()}
    assert {type(ge).__name__ for ge in operators.values()} == {"Scale"}
    assert {(ge.extent, ge.weight.unique().item()) for ge in operators.values()} == {(4, 0.25)}
    assert [ge.size for ge in operators.values()] == [(28, 28), (14, 14), (7, 7)]
    assert learns(network, 1, 28)
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(again.eval()(x), network.eval()(x))
    plain = train_config("ge=none", "model=resnet8")
    assert count_run(config).total.params == count_run(plain).total.params + 16 + 32 + 64


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["_target_: mine.Block"], ["ge=mine: mine.Block", "extent"]),
        (["_target_: extension.Shrinking"], ["ge._target_", "Shrinking", "[2, 16, 28, 28]", "[2, 16, 14, 28]"]),
        (["_target_: extension.no_module"], ["ge._target_", "int", "torch.nn.Module"]),
    ],
)
def test_operator_that_does_not_fit(mine, lines, words):
    with pytest.raises(ConfigError) as caught:
        network_of(train_config(*mine("ge", *lines, "variant: mine"), "model=resnet8"))
    assert all(word in str(caught.value) for word in words), caught.value


def test_backbone_of_a_user(mine):
    chosen = mine("model", "_target_: mine.Tiny", "name: mine", "stages: [2, 3]", "width: 4")
    config = train_config(*chosen, "ge=theta", "ge.extent=2", "ge.stages=[3]")
    network = network_of(config)
    assert network.layer2[0].ge.extra_repr() == "4, variant=theta, extent=2"
    assert isinstance(network.layer1[0].ge, torch.nn.Identity)
    assert learns(network, 1, 28)
    assert set(count_run(config).parts) == {"stem", "stage2", "stage3", "head"}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["_target_: mine.Tiny", "depth: 2"], ["model=mine", "mine.Tiny", "'depth'"]),
        (["_target_: extension.NoSlots"], ["Block", "'ge'"]),
        (["_target_: torch.nn.Identity"], ["Identity", "layer1"]),
        (["_target_: mine.Tiny", "zero_init_residual: true"], ["zero_init_residual", "zero_init_last"]),
    ],
)
def test_backbone_that_does_not_fit(mine, lines, words):
    with pytest.raises(ConfigError) as caught:
        network_of(train_config(*mine("model", *lines, "name: mine", "stages: [2, 3]", "width: 4"), "ge=theta_minus"))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("arch", ["resnext50_32x4d", "wide_resnet50_2", "res2net50_26w_4s"])
def test_timms_resnets(arch):
    config = train_config("model=timm", f"model.arch={arch}", "ge=theta", "ge.extent=2", "ge.stages=[3,5]")
    network = network_of(config)
    held = [name for name, block in blocks(network).items() if block.se is not None]
    assert {name.partition("_")[0] for name in held} == {"conv3", "conv5"}
    assert learns(network, 1, 32)


@pytest.mark.parametrize(
    ("arch", "message"),
    [("resnest14d", "ResNestBottleneck.*'se'"), ("mobilenetv3_small_100", "MobileNetV3.*ResNet family")],
)
def test_timms_networks_that_do_not_fit(arch, message):
    with pytest.raises(ConfigError, match=message):
        network_of(train_config("model=timm", f"model.arch={arch}", "ge=theta_minus"))
