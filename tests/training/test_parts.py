"""Parameter groups, counting of errors and checkpoints: against numbers worked out by hand."""

import pickle
import subprocess
import sys

import pytest
import torch
from geexp.training.errors_count import ErrorCount
from geexp.training.wandb_login import usual_mode

from geexp import build_model
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import OptimConfig
from geexp.training.checkpoints import load_checkpoint
from geexp.training.optimizer import group_table, make_sgd, parameter_groups
from geexp.training.run import _callback


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
        ({"decay_bn": True}, (0.1, 1e-4), (0.1, 1e-4), (0.2, 0)),
        ({"decay_biases": True}, (0.1, 1e-4), (0.1, 0), (0.2, 1e-4)),
        ({"bias_lr_factor": 1.0}, (0.1, 1e-4), (0.1, 0), (0.1, 0)),
        ({"weight_decay": 0.0}, (0.1, 0), (0.1, 0), (0.2, 0)),
        ({"weight_decay": 5e-4, "decay_bn": True}, (0.1, 5e-4), (0.1, 5e-4), (0.2, 0)),
        ({"decay_bn": True, "decay_biases": True, "bias_lr_factor": 1.0}, *[(0.1, 1e-4)] * 3),
        ({"batch_size": 1024}, (0.1, 1e-4), (0.1, 0), (0.2, 0)),
        ({"batch_size": 1024, "lr_for_batch": 256}, (0.4, 1e-4), (0.4, 0), (0.8, 0)),
    ],
    ids=lambda case: ",".join(case) or "paper" if isinstance(case, dict) else "",
)
def test_each_difference_between_the_groups_is_a_switch(switched, weights, bn, biases):
    sgd = make_sgd(build_model("resnet20", ge="theta_plus"), OptimConfig(**switched))
    groups = {group["name"]: group for group in sgd.param_groups}
    expected = {"weights": weights, "bn": bn, "biases": biases}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == expected
    assert all(group["base_lr"] == group["lr"] for group in groups.values())  # before any schedule


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.8, True), (0.0, False)])
def test_momentum_is_that_of_all_groups(momentum, nesterov):
    sgd = make_sgd(build_model("resnet20"), OptimConfig(momentum=momentum, nesterov=nesterov))
    assert {(group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(momentum, nesterov)}


def test_what_a_step_does_to_a_weight_a_bn_and_a_bias():
    """With gradients of zero only decay moves; with gradients of one, each group moves by its rate."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.SyncBatchNorm(2))
    for gradient, moves in ((0.0, (0.1 * 1e-4, 0, 0, 0)), (1.0, (0.1 * (1 + 1e-4), 0.2, 0.1, 0.1))):
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
            parameter.grad = torch.full_like(parameter, gradient)
        make_sgd(model, OptimConfig()).step()
        linear, bn, sync = model
        for moved, by in zip((linear.weight, linear.bias, bn.weight, sync.bias), moves, strict=True):
            assert torch.allclose(1 - moved, torch.tensor(by, dtype=torch.float32), rtol=1e-2, atol=1e-9)


def test_a_network_without_a_kind_of_parameter_has_no_group_of_it():
    assert [group["name"] for group in parameter_groups(torch.nn.Conv2d(1, 1, 1, bias=False), OptimConfig())] == [
        "weights"
    ]


def test_the_table_of_groups_says_what_is_in_them():
    model = build_model("resnet20", ge="theta_plus")
    sgd = make_sgd(model, OptimConfig(nesterov=True, weight_decay=5e-4))
    for group in sgd.param_groups:
        group["lr"] = 0.0  # wherever the schedule stands, the table shows what it multiplies
    table = group_table(sgd)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in sgd.param_groups}
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    bns = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert sizes["bn"] == sum(2 * bn.num_features for bn in bns)
    assert sizes["biases"] == 10 + sum(C + C // 16 for C in (16, 32, 64)) * 3
    assert columns == {
        "group": ["weights", "bn", "biases"],
        "tensors": [str(len(group["params"])) for group in sgd.param_groups],
        "parameters": [f"{sizes[name]:,}" for name in ("weights", "bn", "biases")],
        "learning rate": ["0.1", "0.1", "0.2"],
        "weight decay": ["0.0005", "0", "0"],
        "momentum": ["0.9 Nesterov"] * 3,
    }
    assert columns["tensors"][1:] == [str(2 * len(bns)), str(1 + 2 * 9)]


CPU = torch.device("cpu")


def test_errors_are_counted_exactly_over_uneven_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(103, 20), torch.randint(0, 20, (103,))
    count = ErrorCount()
    for batch in torch.arange(103).split(10):
        loss = torch.nn.functional.cross_entropy(logits[batch], labels[batch])
        count.add(logits[batch], labels[batch], loss)
    order = logits.argsort(dim=1, descending=True)
    top1 = sum(int(order[i, 0]) != int(labels[i]) for i in range(103))
    top5 = sum(int(labels[i]) not in order[i, :5].tolist() for i in range(103))
    metrics = count.metrics(CPU)
    assert (metrics["top1_wrong"], metrics["top5_wrong"], metrics["images"]) == (top1, top5, 103)
    assert metrics["top1_error"] == 100 * top1 / 103
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    count.reset()
    assert count.metrics(CPU) == {}


def test_the_loss_is_summed_in_its_own_precision():
    count = ErrorCount()
    for _ in range(1000):  # a sum in bfloat16 stands still after some hundreds
        count.add(
            torch.zeros(64, 10, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.int64), torch.tensor(2.0).bfloat16()
        )
    assert count.metrics(CPU)["loss"] == 2.0
    assert count.metrics(CPU)["images"] == 64_000


def test_top5_of_three_classes_never_errs():
    count = ErrorCount()
    count.add(torch.eye(3), torch.tensor([0, 1, 0]), torch.tensor(1.0))
    assert (count.metrics(CPU)["top1_wrong"], count.metrics(CPU)["top5_wrong"]) == (1, 0)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


def test_checkpoints_that_are_not_ours(tmp_path):
    path = tmp_path / "x.ckpt"
    with pytest.raises(DataError, match="no such file"):
        load_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(path)
    torch.save({"state_dict": {}, "x": Evil()}, path)
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(DataError, match="not written by a run of this geexp"):
        load_checkpoint(path)


def test_wandb_is_online_only_for_who_is_logged_in(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert usual_mode() == "offline"
    (tmp_path / "netrc").write_text(f"machine wandb.example login user password {'0' * 40}\n")
    assert usual_mode() == "online"
    (tmp_path / "netrc").write_text("machine elsewhere.example login user password secret\n")
    assert usual_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert usual_mode() == "online"


def test_there_is_no_unsafe_load_in_the_package():
    found = subprocess.run(
        [sys.executable, "-c", "import geexp, pathlib; print(pathlib.Path(geexp.__file__).parent)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    from pathlib import Path

    sources = [path.read_text(encoding="utf-8") for path in Path(found).rglob("*.py")]
    assert len(sources) > 30
    assert not any("weights_only=False" in source for source in sources)


def test_what_is_no_callback_is_refused():
    with pytest.raises(ConfigError, match=r"callbacks\.x: builtins\.dict makes a dict, not a callback"):
        _callback("x", {"_target_": "builtins.dict"})
