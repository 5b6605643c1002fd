"""``geexp.export``: the exported files compute what the network computes, for any batch size, without geexp."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from geexp.analysis.export import export
from geexp.config import extras
from geexp.config.errors import ConfigError, DataError
from geexp.config.extras import require_extras
from geexp.config.schema import ExportConfig, GatherExciteConfig
from geexp.runs.job import make_job
from geexp.training.classification import Classification
from geexp.training.evaluation import restore_network
from geexp.training.run import train
from tests.support.configuration import job, train_config

SHORT = ["debug=one_batch", "logger=none", "model=resnet8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of GE-θ⁺ with a finite extent, in channels_last."""
    folder = tmp_path_factory.mktemp("run")
    train(job(folder, *SHORT, "ge=theta_plus", "ge.extent=4"))
    return folder


def outputs(path: Path, images: torch.Tensor) -> torch.Tensor:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images)
    onnxruntime = pytest.importorskip("onnxruntime")
    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_the_file_computes_what_the_network_computes(run, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    made = export(ExportConfig(run=str(run), format=kind, which="last", out=str(tmp_path)))
    assert made.checked_on == "8 validation images"
    assert made.difference <= made.tolerance < 1
    network, checkpoint = restore_network(Classification(), run / "checkpoints/last.ckpt")
    for number in (1, 3):
        images = torch.randn(number, 1, 28, 28, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            torch.testing.assert_close(outputs(made.path, images), network.eval()(images), rtol=1e-4, atol=1e-5)
    about = json.loads(made.path.with_name(f"{made.path.name}.json").read_text())
    assert about["sha256"] == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert about["run"] == str(run)
    assert about["mean"] == checkpoint.config.data.mean
    assert about["input"]["shape"] == ["batch", 1, 28, 28]
    assert len(about["classes"]) == 10
    assert {path.name for path in tmp_path.iterdir()} == {made.path.name, f"{made.path.name}.json"}


def test_without_the_data_set_it_is_checked_on_noise_and_a_wrong_root_is_an_error(tmp_path, monkeypatch):
    train(job(tmp_path, *SHORT, "ge=theta"))

    def gone(**_: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr("geexp.data.datasets.fashion_mnist_mini", gone)
    made = export(ExportConfig(run=str(tmp_path)))
    assert made.path == tmp_path / "export/best.pt2"
    assert "noise" in made.checked_on
    assert json.loads((tmp_path / "export/best.pt2.json").read_text())["classes"] is None
    with pytest.raises(DataError, match="gone"):
        export(ExportConfig(run=str(tmp_path), root="elsewhere"))


class OddAndEven(nn.Module):
    """Its forward branches on the batch size, which no graph for every batch size can hold."""

    def __init__(self, channels: int, extent: object, size: object) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if len(x) % 2 else x * 2


def test_what_cannot_be_exported_is_refused_in_one_line(run, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        export(ExportConfig(run="nowhere"))
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    with pytest.raises(DataError, match=r"finished run.*resumes it"):
        export(ExportConfig(run=str(unfinished)))
    config = train_config(*SHORT, "ge=theta_minus")
    custom = GatherExciteConfig("mine", _target_=f"{__name__}.OddAndEven")
    train(make_job(replace(config, ge=custom), tmp_path / "custom"))
    with pytest.raises(ConfigError, match=r"format=torch: .* ge=mine cannot be exported.*the batch size"):
        export(ExportConfig(run=str(tmp_path / "custom")))
    assert not list(tmp_path.rglob("export/*"))
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"format=onnx needs onnx, onnxscript, onnxruntime.*geexp\[onnx\]"):
        require_extras("format=onnx", "onnx")
