"""Schedules, parameter groups, counting of errors and checkpoints: against numbers worked out by hand."""

import math
import pickle
import subprocess
import sys

import pytest
import torch
import yaml

from geexp import build_model
from geexp.config.command import config_directory
from geexp.config.errors import DataError
from geexp.config.schema import OptimConfig, ScheduleConfig
from geexp.training.checkpoints import load_checkpoint
from geexp.training.errors_count import ErrorCount
from geexp.training.loggers import usual_mode
from geexp.training.optimizer import make_sgd, parameter_groups
from geexp.training.schedules import lr_factor


def schedule(name: str) -> ScheduleConfig:
    with open(f"{config_directory()}/schedule/{name}.yaml", encoding="utf-8") as file:
        return ScheduleConfig(**yaml.safe_load(file))


@pytest.mark.parametrize(
    ("name", "epoch", "rate"),
    [
        ("fixed100", 0, 0.1),
        ("fixed100", 29.99, 0.1),
        ("fixed100", 30, 0.01),
        ("fixed100", 60, 0.001),
        ("fixed100", 99.9, 0.0001),
        ("wrn_cifar", 59.9, 0.1),
        ("wrn_cifar", 60, 0.02),
        ("wrn_cifar", 120, 0.004),
        ("wrn_cifar", 160, 0.0008),
        ("demo", 0, 0),
        ("demo", 0.25, 0.05),
        ("demo", 0.5, 0.1),
        ("demo", 2.75, 0.05),
        ("demo", 5, 0),
    ],
)
def test_learning_rate(name, epoch, rate):
    assert 0.1 * lr_factor(schedule(name), epoch) == pytest.approx(rate, abs=1e-12)


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


def test_parameter_groups_can_be_switched_off():
    groups = parameter_groups(build_model("resnet20"), OptimConfig(decay_bn_and_bias=True, bias_lr_factor=1.0))
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(0.1, 1e-4)}
    sgd = make_sgd(build_model("resnet20"), OptimConfig(nesterov=True, momentum=0.8))
    assert all(group["nesterov"] and group["momentum"] == 0.8 for group in sgd.param_groups)


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


def test_the_cosine_is_one():
    assert lr_factor(ScheduleConfig(name="x", kind="cosine", epochs=10), 3) == pytest.approx(
        0.5 * (1 + math.cos(0.3 * math.pi))
    )
