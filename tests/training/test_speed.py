"""What makes a run fast: it must not change what is learnt, and it is said in one line."""

from dataclasses import replace

import pytest
import torch
from geexp.training.speed import said_of_speed

from geexp.backbones import build_model
from geexp.config.compose import composed_training
from geexp.config.schema import OptimConfig
from geexp.training.optimizer import make_sgd


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_fused_step_is_the_plain_one(nesterov):
    """In float64, over several steps with their momenta; the paper's three groups."""
    optim = OptimConfig(momentum=0.9, nesterov=nesterov, weight_decay=1e-2)
    networks = []
    for fused in (True, False):
        torch.manual_seed(0)
        network = build_model("resnet8", ge="theta_plus").double()
        sgd = make_sgd(network, optim)
        for group in sgd.param_groups:
            assert group["fused"] is True
            group["fused"] = fused
        for _ in range(4):
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            sgd.step()
        networks.append(network)
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_clipped_gradients_are_not_for_a_fused_step():
    sgd = make_sgd(build_model("resnet8"), OptimConfig(clip_norm=1.0))
    assert {group["fused"] for group in sgd.param_groups} == {False}


def test_what_is_on_is_said():
    config = composed_training("ge=none")
    sgd = make_sgd(build_model("resnet8"), config.optim)
    assert said_of_speed(config, sgd) == "32-true, channels_last, fused SGD, not compiled"
    config = composed_training("ge=theta_minus", "ge.implementation=fused")
    trainer = replace(config.trainer, compile=True, channels_last=False, precision="bf16-mixed", accumulate=2)
    plain = make_sgd(build_model("resnet8"), replace(config.optim, clip_norm=1.0))
    said = said_of_speed(replace(config, trainer=trainer), plain)
    assert said == "bf16-mixed, contiguous, SGD, compiled (default), ge.implementation=fused, 2 batches a step"
