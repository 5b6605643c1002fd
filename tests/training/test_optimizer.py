"""Parameter groups and optimisers, against numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch

from geexp.backbones import build_model
from geexp.config.errors import ConfigError, DivergedError
from geexp.config.schema import OptimConfig
from geexp.training.optimizer import group_table, make_optimizer, parameter_groups
from geexp.training.run import train
from geexp.training.trainer import describe_performance, make_trainer
from tests.support.configuration import job, train_config
from tests.support.runs import SETTINGS, checkpoint, history, same_weights, trouble


def test_parameter_groups_are_the_authors():
    model = build_model("resnet20", ge="theta_plus")
    groups = {group["name"]: group for group in parameter_groups(model, OptimConfig())}
    assert (groups["weights"]["lr"], groups["weights"]["weight_decay"]) == (0.1, 1e-4)
    assert (groups["bn"]["lr"], groups["bn"]["weight_decay"]) == (0.1, 0.0)
    assert (groups["biases"]["lr"], groups["biases"]["weight_decay"]) == (0.2, 0.0)
    held = [p for group in groups.values() for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    assert len(groups["biases"]["params"]) == 1 + 2 * 9  # the classifier's, and two per excite sub-network
    gather = model.layer1[0].ge.gather
    assert any(p is gather[0].weight for p in groups["weights"]["params"])
    assert any(p is gather[1].bias for p in groups["bn"]["params"])


# (learning rate, weight decay) of the weights, of BN, of the biases
@pytest.mark.parametrize(
    ("switched", "weights", "bn", "biases"),
    [
        ({}, (0.1, 1e-4), (0.1, 0), (0.2, 0)),
        ({"weight_decay": 5e-4, "decay_bn": True}, (0.1, 5e-4), (0.1, 5e-4), (0.2, 0)),
        ({"decay_biases": True}, (0.1, 1e-4), (0.1, 0), (0.2, 1e-4)),
        ({"bias_lr_factor": 1.0}, (0.1, 1e-4), (0.1, 0), (0.1, 0)),
        ({"batch_size": 1024, "lr_for_batch": 256}, (0.4, 1e-4), (0.4, 0), (0.8, 0)),
    ],
    ids=lambda case: ",".join(case) or "paper" if isinstance(case, dict) else "",
)
def test_each_difference_between_the_groups_is_a_switch(switched, weights, bn, biases):
    sgd = make_optimizer(build_model("resnet20", ge="theta_plus"), OptimConfig(**switched))
    groups = {group["name"]: group for group in sgd.param_groups}
    expected = {"weights": weights, "bn": bn, "biases": biases}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == expected
    assert all(group["base_lr"] == group["lr"] for group in groups.values())  # before any schedule


@pytest.mark.parametrize(
    ("name", "weights", "bn", "biases"),
    [
        ("paper", (0.1, 1e-4), (0.1, 0), (0.2, 0)),
        ("shufflenet", (0.1, 4e-5), (0.1, 0), (0.2, 0)),
        ("cifar", (0.1, 1e-4), (0.1, 1e-4), (0.1, 1e-4)),
        ("wrn", (0.1, 5e-4), (0.1, 5e-4), (0.1, 5e-4)),
        ("coco", (1e-3, 5e-4), (1e-3, 0), (2e-3, 0)),
    ],
)
def test_each_protocol_has_the_groups_of_its_source(name, weights, bn, biases):
    groups = parameter_groups(build_model("resnet20", ge="theta_plus"), train_config(f"optim={name}").optim)
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert found == {"weights": weights, "bn": bn, "biases": biases}


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.8, True), (0.0, False)])
def test_momentum_is_that_of_all_groups(momentum, nesterov):
    sgd = make_optimizer(build_model("resnet20"), OptimConfig(momentum=momentum, nesterov=nesterov))
    assert {(group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(momentum, nesterov)}


def test_what_a_step_does_to_a_weight_a_bn_and_a_bias():
    """With gradients of zero only decay moves; with gradients of one, each group moves by its rate."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.SyncBatchNorm(2))
    for gradient, moves in ((0.0, (0.1 * 1e-4, 0, 0, 0)), (1.0, (0.1 * (1 + 1e-4), 0.2, 0.1, 0.1))):
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
            parameter.grad = torch.full_like(parameter, gradient)
        make_optimizer(model, OptimConfig()).step()
        linear, bn, sync = model
        for moved, by in zip((linear.weight, linear.bias, bn.weight, sync.bias), moves, strict=True):
            assert torch.allclose(1 - moved, torch.tensor(by, dtype=torch.float32), rtol=1e-2, atol=1e-9)


def test_a_network_without_a_kind_of_parameter_has_no_group_of_it():
    assert [group["name"] for group in parameter_groups(torch.nn.Conv2d(1, 1, 1, bias=False), OptimConfig())] == [
        "weights"
    ]


def test_the_table_of_groups_says_what_is_in_them():
    model = build_model("resnet20", ge="theta_plus")
    sgd = make_optimizer(model, OptimConfig(nesterov=True, weight_decay=5e-4))
    for group in sgd.param_groups:
        group["lr"] = 0.0  # wherever the schedule stands, the table shows what it multiplies
    columns = {str(column.header): list(column.cells) for column in group_table(sgd).columns}
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in sgd.param_groups}
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    assert columns == {
        "group": ["weights", "bn", "biases"],
        "tensors": [str(len(group["params"])) for group in sgd.param_groups],
        "parameters": [f"{sizes[name]:,}" for name in ("weights", "bn", "biases")],
        "learning rate": ["0.1", "0.1", "0.2"],
        "weight decay": ["0.0005", "0", "0"],
        "momentum": ["0.9 Nesterov"] * 3,
    }


@pytest.mark.parametrize(("clip_norm", "fused"), [(None, True), (1.0, False)])
def test_steps_are_fused_unless_gradients_are_clipped(clip_norm, fused):
    sgd = make_optimizer(build_model("resnet8"), OptimConfig(clip_norm=clip_norm))
    assert {group["fused"] for group in sgd.param_groups} == {fused}


def test_the_line_about_performance():
    config = train_config("ge=none")
    sgd = make_optimizer(build_model("resnet8"), config.optim)
    expected = "precision=32-true, memory_format=channels_last, fused SGD, not compiled"
    assert describe_performance(config, sgd, torch.device("cpu")) == expected
    config = train_config("ge=theta_minus", "ge.implementation=fused")
    trainer = replace(config.trainer, compile=True, channels_last=False, precision="bf16-mixed", deterministic=True)
    adam = make_optimizer(build_model("resnet8"), OptimConfig(_target_="torch.optim.AdamW"))
    config = replace(config, trainer=replace(trainer, accumulate=2))
    line = describe_performance(config, adam, torch.device("cuda"))
    for part in ("bf16-mixed", "contiguous", "AdamW", "compiled (default)", "ge.implementation=fused", "2 batches"):
        assert part in line
    for part in ("TF32", "cudnn.benchmark", "deterministic"):
        assert part in line


@pytest.mark.parametrize(
    ("overrides", "benchmark"),
    [([], True), (["trainer.deterministic=true"], False), (["experiment=demo_detection"], False)],
)
def test_convolutions_are_timed_where_it_pays_off(monkeypatch, tmp_path, overrides, benchmark):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        make_trainer(train_config("trainer=cpu", *overrides), tmp_path, logger=False)
        assert torch.backends.cudnn.benchmark is benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)


# an optimiser of torch, or of the user


def no_optimiser(groups: list, lr: float) -> dict:
    return {"lr": lr}


def adamw(**arguments) -> OptimConfig:
    return OptimConfig(_target_="torch.optim.AdamW", lr=0.01, weight_decay=0.05, arguments=arguments)


def test_any_optimiser_of_torch_over_our_groups():
    optimizer = make_optimizer(build_model("resnet8"), adamw(betas=[0.8, 0.99]))
    assert isinstance(optimizer, torch.optim.AdamW)
    settings = {g["name"]: (g["lr"], g["base_lr"], g["weight_decay"], list(g["betas"])) for g in optimizer.param_groups}
    assert settings == {
        "weights": (0.01, 0.01, 0.05, [0.8, 0.99]),
        "bn": (0.01, 0.01, 0.0, [0.8, 0.99]),
        "biases": (0.02, 0.02, 0.0, [0.8, 0.99]),
    }
    assert group_table(optimizer).row_count == 3


@pytest.mark.parametrize(
    ("target", "arguments", "named"),
    [
        ("torch.optim.AdamW", {"beta": 0.9}, "beta"),
        ("torch.optim.AdamW", {"betas": [2.0, 0.9]}, "Invalid beta"),
        ("torch.optim.AdamWW", {}, "AdamWW"),
        (f"{__name__}.no_optimiser", {}, "a dict, not a torch.optim.Optimizer"),
    ],
)
def test_a_wrong_optimiser_is_one_error(target, arguments, named):
    with pytest.raises(ConfigError, match=r"optim\._target_") as error:
        make_optimizer(build_model("resnet8"), OptimConfig(_target_=target, arguments=arguments))
    assert named in str(error.value)


def test_adamw_resumes_bit_for_bit(tmp_path):
    """From a checkpoint within an epoch, after a step that diverged by accident."""
    settings = [*SETTINGS, "optim._target_=torch.optim.AdamW", "optim.lr=0.001", "+optim.betas=[0.8,0.99]"]
    settings += ["optim.momentum=null", "optim.nesterov=null"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train(job(whole, *settings)) is not None
    with pytest.raises(DivergedError):
        train(job(resumed, *settings, trouble("Poison", step=11)))
    assert checkpoint(resumed)["global_step"] == 8
    assert train(job(resumed, *settings)) is not None
    assert history(resumed) == history(whole)
    same_weights(resumed, whole)
    states = [checkpoint(run)["optimizer_states"][0]["state"] for run in (resumed, whole)]
    assert all(torch.equal(states[0][i][key], states[1][i][key]) for i in states[1] for key in states[1][i])
