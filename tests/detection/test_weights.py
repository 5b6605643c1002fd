"""The weights that a detector's backbone starts from."""

from dataclasses import asdict

import pytest
import timm
import torch
from safetensors.torch import save_file

from geexp.backbones import build_model
from geexp.backbones.resnet import resnet10_slim
from geexp.config.errors import DataError
from geexp.detection.weights import load_backbone
from geexp.runs.run import CheckpointInfo
from geexp.training.checkpoints import INFO
from geexp.training.network import network_of
from tests.support.configuration import train_config


def checkpoint(path, *overrides):
    """Write the checkpoint of a classification run; returns its network."""
    config = train_config("data=fashion_mnist_mini", "model=resnet8", *overrides)
    network = network_of(config)
    info = CheckpointInfo(config=asdict(config), run_id="x", epoch=1, metrics={})
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({INFO: asdict(info), "state_dict": state}, path)
    return network


def resnet8(**options):
    return build_model(**{"name": "resnet8", "num_classes": 4, "image_size": 28, "in_channels": 1, **options})


def equal(a, b):
    names = [name for name in a.state_dict() if not name.startswith("fc.")]
    return all(torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in names)


def test_a_run_of_ours(tmp_path):
    path = tmp_path / "last.ckpt"
    network, backbone = checkpoint(path, "ge=theta", "ge.extent=4"), resnet8(ge="theta", extent=4)
    assert not equal(network, backbone)
    loaded = load_backbone(backbone, path)
    assert equal(network, backbone)
    assert str(path) in loaded.description
    assert loaded.description.endswith("2 of its classifier left out")
    assert "\n" not in loaded.description
    assert loaded.run.ge.variant == "theta"


def test_operators_may_start_new(tmp_path):
    path = tmp_path / "last.ckpt"
    network, backbone = checkpoint(path, "ge=none"), resnet8(ge="theta_plus", extent=2, stages=(3, 4))
    assert load_backbone(backbone, path).description.endswith("Gather-Excite starts new in conv3_1, conv4_1")
    assert equal(network, backbone)


@pytest.mark.parametrize(
    ("run", "backbone", "message"),
    [
        ("ge=theta", {"ge": "theta", "extent": 4}, r"conv2_1 has GatherExcite\(16, variant=theta, ext"),
        ("ge=theta_minus", {"ge": "theta_minus", "pool": "max"}, "pool=avg.*pool=max"),
        ("ge=theta_minus", {}, "Gather-Excite in conv2_1, conv3_1, conv4_1, where this network has none"),
        ("ge=none", {"name": "resnet20"}, "tensors of the network are not in the file, such as layer1.1"),
        ("ge=none", {"in_channels": 3}, "1 tensors have another shape, such as conv1.weight, .* in the file"),
    ],
)
def test_a_run_of_another_network(tmp_path, run, backbone, message):
    checkpoint(tmp_path / "last.ckpt", run)
    with pytest.raises(DataError, match=message):
        load_backbone(resnet8(**backbone), tmp_path / "last.ckpt")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """ResNet-50 as published by timm and torchvision."""
    network = timm.create_model("resnet50", num_classes=7)
    folder = tmp_path_factory.mktemp("published")
    old = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(old, folder / "resnet50.pth")  # torchvision's weights are older than that counter
    save_file(network.state_dict(), folder / "model.safetensors")
    return network, folder


@pytest.fixture(scope="module")
def resnet50():
    return build_model("resnet50", ge="theta", extent=8, stages=(5,), stride_in="3x3")


@pytest.mark.parametrize("file", ["resnet50.pth", "model.safetensors"])
def test_published_weights(published, resnet50, file):
    network, folder = published
    torch.nn.init.zeros_(resnet50.conv1.weight)
    description = load_backbone(resnet50, folder / file).description
    assert equal(network, resnet50)
    assert description.startswith("265 tensors loaded from ")
    assert description.endswith("2 of its classifier left out; Gather-Excite starts new in conv5_1, conv5_2, conv5_3")


def test_another_place_of_the_stride_is_noted(published, resnet50, monkeypatch):
    monkeypatch.setattr(resnet50.layer2[0].conv1, "stride", (2, 2))
    description = load_backbone(resnet50, published[1] / "model.safetensors").description
    assert "are for stride_in=3x3, but this backbone has 1x1" in description


def test_files_of_something_else(published, resnet50, tmp_path):
    network, folder = published
    with pytest.raises(DataError, match=r"no place in the network.*not in the file.*have another shape"):
        load_backbone(resnet10_slim(num_classes=10, in_channels=3), folder / "resnet50.pth")
    extra = network.state_dict() | {"layer5.weight": torch.zeros(2)}
    torch.save(extra, tmp_path / "extra.pth")
    with pytest.raises(DataError, match=r"1 tensors of the file have no place in the network, such as layer5\.weight"):
        load_backbone(resnet50, tmp_path / "extra.pth")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "nested.pth")
    with pytest.raises(DataError, match="not a dictionary of tensors"):
        load_backbone(resnet50, tmp_path / "nested.pth")


class Unsafe:
    def __reduce__(self):
        return print, ("code from a file was run",)


def test_unreadable_files(tmp_path, capsys):
    for name in ("a.pth", "a.safetensors", "a.ckpt"):
        with pytest.raises(DataError, match="no such file"):
            load_backbone(resnet8(), tmp_path / name)
        (tmp_path / name).write_bytes(b"\x80\x02half of it")
        with pytest.raises(DataError, match="cannot be read"):
            load_backbone(resnet8(), tmp_path / name)
    torch.save(Unsafe(), tmp_path / "unsafe.pth")
    with pytest.raises(DataError, match=r"unsafe\.pth: contains Python objects \(.*print\)"):
        load_backbone(resnet8(), tmp_path / "unsafe.pth")
    assert capsys.readouterr().out == ""
