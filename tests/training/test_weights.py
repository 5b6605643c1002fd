"""Trainings that start from weights: of a run of ours, or as other training scripts leave them."""

import argparse
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from geexp.backbones import build_model
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import EvaluateConfig
from geexp.runs.job import make_job, weights_file
from geexp.training.checkpoints import load_checkpoint
from geexp.training.classification import Classification
from geexp.training.evaluation import evaluate
from geexp.training.run import train
from geexp.training.weights import load_weights
from tests.support.configuration import job, train_config
from tests.support.photos import write_classes
from tests.support.runs import SETTINGS, checkpoint, weights

CLASSES = ["ash", "beech", "birch", "elm", "oak"]
# Two steps whose updates are far below the weights, so that a trained network shows what it started from.
STEPS = ["trainer=cpu", "logger=none", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "optim.lr=1e-9"]


def network(**settings) -> nn.Module:
    return build_model(**{"name": "resnet10_slim", "num_classes": 7, "image_size": 32, **settings})


def prefixed(tensors: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def same(ours: dict, theirs: dict) -> bool:
    return all(torch.equal(ours[name], theirs[name].float()) for name in ours)


def learned(tensors: dict) -> list[str]:
    """The names without those of BN's statistics."""
    return [name for name in tensors if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]


def forms(plain: dict) -> Iterator[tuple[str, object]]:
    options = argparse.Namespace(lr=0.1, sizes=[1, 2])
    yield "timm's train.py", {"state_dict": plain, "state_dict_ema": prefixed(plain, "x."), "args": options, "epoch": 3}
    yield "torchvision's reference", {"model": plain, "optimizer": {"state": {}, "param_groups": []}, "args": options}
    yield "PyTorch's example", {"state_dict": prefixed(plain, "module."), "best_acc1": torch.tensor(76.1)}
    yield "averaged weights alone", {"state_dict_ema": plain}
    yield "torch.compile", {"model_state_dict": prefixed(plain, "_orig_mod.")}
    yield "DDP of a compiled network", prefixed(plain, "module._orig_mod.")
    yield "a compiled network of DDP", prefixed(plain, "_orig_mod.module.")
    yield "a compiled stage", {name.replace("layer1.", "layer1._orig_mod."): tensor for name, tensor in plain.items()}
    with_a_loss = prefixed(plain, "model.") | {"loss.weight": torch.ones(7)}
    yield "Lightning", {"state_dict": with_a_loss, "hyper_parameters": {}}
    yield "averaged by torch", prefixed(plain, "module.") | {"n_averaged": torch.tensor(4)}
    yield "half precision", {name: t.half() if t.is_floating_point() else t for name, t in plain.items()}
    yield "bfloat16", {name: t.bfloat16() if t.is_floating_point() else t for name, t in plain.items()}


def test_files_as_training_scripts_leave_them(tmp_path):
    plain = {name: tensor.bfloat16().float() for name, tensor in network().state_dict().items()}
    plain = {name: tensor.half().float() if tensor.dim() else tensor.long() for name, tensor in plain.items()}
    save_file(plain, tmp_path / "model.safetensors")
    files = {tmp_path / "model.safetensors": "safetensors"}
    for number, (name, content) in enumerate(forms(plain)):
        torch.save(content, tmp_path / f"{number}.pth.tar")
        files[tmp_path / f"{number}.pth.tar"] = name
    for file, name in files.items():
        ours = network()
        assert not same(ours.state_dict(), plain)
        loaded = load_weights(ours, file)
        assert same(ours.state_dict(), plain), name
        assert next(ours.parameters()).dtype == torch.float32
        assert ("left out" in loaded.description) == (name in ("Lightning", "averaged by torch")), loaded
        assert "\n" not in loaded.description


def test_a_file_with_other_objects_is_refused_with_the_command_that_converts_it(tmp_path):
    file = tmp_path / "best.pth"
    plain = network().state_dict()
    for content in ({"state_dict": plain, "accuracy": np.float64(0.7)}, {"state_dict": plain, "at": Path("x")}):
        torch.save(content, file)
        with pytest.raises(DataError) as error:
            load_weights(network(), file)
        message = str(error.value)
        assert all(part in message for part in (str(file), "weights_only", "trust"))
        assert "numpy" in message or "pathlib" in message
        command = re.search(r'-c "(.*)"', message)[1].replace("'weights.pth'", repr(str(tmp_path / "weights.pth")))
        exec(command)
        ours = network()
        load_weights(ours, tmp_path / "weights.pth")
        assert same(ours.state_dict(), plain)
    torch.save(network(), file)
    with pytest.raises(DataError, match=r"\(timm\.models\.resnet\.ResNet\).*c\.state_dict\(\)"):
        load_weights(network(), file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "optimizer": {}}, ["state_dict", "its entries are epoch, optimizer"]),
        ([1, 2], ["state_dict"]),
        ({"features.0.weight": torch.ones(2)}, ["have no place", "such as features.0.weight", "are not in the file"]),
        (
            {"conv1.0.weight": torch.ones(8, 1, 3, 3)},
            ["conv1.0.weight, [8, 1, 3, 3] in the file and [8, 3, 3, 3] here"],
        ),
    ],
)
def test_files_of_something_else(tmp_path, content, words):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(DataError) as error:
        load_weights(network(), tmp_path / "file.pth")
    assert all(word in str(error.value) for word in [str(tmp_path / "file.pth"), *words]), error.value


def test_another_backbone_and_another_number_of_classes(tmp_path):
    with torch.device("meta"):  # the shapes are enough
        resnet50, resnet101 = build_model("resnet50"), torchvision.models.resnet101()
    empty = {f"module.{name}": torch.zeros(()).expand(tensor.shape) for name, tensor in resnet101.state_dict().items()}
    torch.save(empty, tmp_path / "resnet101.pth")
    with pytest.raises(DataError, match=r"255 tensors of the file have no place in the network, such as layer3\.10"):
        load_weights(resnet50, tmp_path / "resnet101.pth")
    plain = network().state_dict()
    for head in ({}, {"fc.weight": torch.ones(9, 128), "fc.bias": torch.ones(9)}, {"fc.0.weight": torch.ones(3, 128)}):
        torch.save({name: t for name, t in plain.items() if not name.startswith("fc.")} | head, tmp_path / "file.pth")
        ours = network(ge="theta")
        fresh = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
        description = load_weights(ours, tmp_path / "file.pth").description
        assert "new classifier for 7 classes; Gather-Excite starts new in conv2_1, conv3_1" in description
        assert "\n" not in description
        untrained = {name for name in fresh if name.startswith("fc.") or ".se." in name}
        assert same({name: ours.state_dict()[name] for name in untrained}, fresh)
        assert same({name: ours.state_dict()[name] for name in fresh.keys() - untrained}, plain)


def test_the_stride_follows_from_a_published_file_and_the_identity_from_its_content(tmp_path):
    def config(*overrides: str):
        return train_config("model=resnet50", *overrides)

    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"other"), ("a.ckpt", b"one")):
        (tmp_path / name).write_bytes(content)
    a, b, c, ckpt = (config(f"weights={tmp_path / name}") for name in ("a.pth", "b.pth", "c.pth", "a.ckpt"))
    assert a.model.stride_in == "3x3"
    assert make_job(a).identity["model"]["stride_in"] == "3x3"
    assert make_job(ckpt).identity["model"]["stride_in"] == "1x1"
    assert make_job(config(f"weights={tmp_path / 'a.pth'}", "model.stride_in=1x1")).slug == make_job(ckpt).slug
    assert make_job(a).slug == make_job(b).slug
    assert len({make_job(one).slug for one in (a, c, ckpt, config())}) == 4
    assert "weights" not in make_job(config()).identity
    assert train_config(f"weights={tmp_path / 'a.pth'}").model.stride_in is None  # ResNet-8 has no such setting


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["weights=nowhere.pth"], ["weights=nowhere.pth", "No such file", ".safetensors"]),
        (["weights=."], ["weights=.", "No such file", "best.ckpt"]),
        (["experiment=coco_baseline", "weights=a.pth"], ["weights", "backbone_checkpoint"]),
        (["backbone_checkpoint=a.pth"], ["backbone_checkpoint", "weights"]),
    ],
)
def test_wrong_settings(overrides, words):
    with pytest.raises(ConfigError) as error:
        weights_file(train_config(*overrides))
    assert all(word in str(error.value) for word in words), error.value


def test_a_checkpoint_that_does_not_show_the_stride(tmp_path, caplog):
    plain = torchvision.models.resnet50(num_classes=10).state_dict()
    torch.save({"state_dict": prefixed(plain, "model.")}, tmp_path / "lightning.ckpt")
    settings = ["model=resnet50", "ge=none", f"weights={tmp_path / 'lightning.ckpt'}"]
    with pytest.raises(ConfigError, match=r"Set model\.stride_in=3x3"):
        Classification().module(train_config(*settings, "data=cifar10"), None)
    made = Classification().module(train_config(*settings, "data=cifar10", "model.stride_in=1x1"), None)
    assert same(made.model.state_dict(), plain)
    assert "model.stride_in=1x1" in caplog.text


def test_from_a_run_of_ours_and_resumed(tmp_path, caplog):
    first = job(tmp_path / "first", *SETTINGS, "model=resnet8", "schedule.epochs=1")
    train(first)
    second = job(tmp_path / "second", *STEPS, "model=resnet8", "ge=theta_minus", f"weights={tmp_path / 'first'}")
    train(second)
    assert second.identity["weights"]
    ours, theirs = weights(tmp_path / "second"), checkpoint(tmp_path / "first", "best")["state_dict"]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in learned(theirs))
    (tmp_path / "second/result.json").unlink()
    (tmp_path / "first/checkpoints/best.ckpt").unlink()
    caplog.set_level(logging.INFO)
    train(job(tmp_path / "second", *STEPS, "model=resnet8", "ge=theta_minus", f"weights={tmp_path / 'first'}"))
    assert "tensors loaded" not in caplog.text
    with pytest.raises(DataError, match=r"conv2_1.*where this network has none"):
        Classification().module(train_config("model=resnet8", "ge=none", f"weights={tmp_path / 'second'}"), None)


def test_fine_tuning_on_a_folder_of_five_classes(tmp_path, caplog):
    """A published ResNet-50, with Gather-Excite added, on one's own images; evaluated without the published file."""
    caplog.set_level(logging.INFO)
    for split, number in (("train", 2), ("val", 1)):
        write_classes(tmp_path / "trees" / split, CLASSES, number)
    plain = torchvision.models.resnet50().state_dict()
    torch.save(plain, tmp_path / "plain.pth")
    data = ["data=image_folder", f"data.root={tmp_path / 'trees'}", "data.image_size=64", "optim.batch_size=4"]
    settings = [*data, *STEPS, "model=resnet50", "ge=theta", f"weights={tmp_path / 'plain.pth'}"]
    result = train(job(tmp_path / "run", *settings))
    assert result.epochs == 1
    ours = {name.removeprefix("model."): tensor for name, tensor in weights(tmp_path / "run").items()}
    assert all(torch.allclose(ours[name], plain[name], atol=1e-5) for name in learned(plain) if "fc." not in name)
    assert ours["fc.weight"].shape[0] == len(CLASSES)
    assert [name for name in ours.keys() - plain.keys() if ".se." not in name] == []
    (line,) = (record.getMessage() for record in caplog.records if "tensors loaded" in record.getMessage())
    assert "new classifier for 5 classes; Gather-Excite starts new in conv2_1" in line
    assert "model.stride_in=3x3" in line
    (tmp_path / "plain.pth").unlink()
    found = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert evaluate(Classification(), found, EvaluateConfig(accelerator="cpu")).identical
