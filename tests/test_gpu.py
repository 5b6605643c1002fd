"""What only a GPU can show; run by make test-gpu."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from geexp import GatherExcite, build_model
from geexp.config.schema import AugmentationConfig
from geexp.data.images import ArrayImages
from geexp.data.resident_feed import ResidentImages
from geexp.operators import VARIANTS
from geexp.training.run import train
from photographs import make_photo_folder
from tests.conftest import environment
from tests.support.configuration import job
from tests.support.runs import trouble

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("extent", [2, 4, 8, "global"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_equals_cpu_in_float64(variant, extent, memory_format):
    torch.manual_seed(0)
    module = GatherExcite(32, variant=variant, extent=extent, size=14).double()
    x = torch.randn(4, 32, 14, 14, dtype=torch.float64).to(memory_format=memory_format)
    outcomes = []
    for device in ("cpu", "cuda"):
        there = x.to(device).detach().requires_grad_()
        y = module.to(device)(there)
        y.square().sum().backward()
        outcomes.append([t.detach().cpu() for t in (y, there.grad, *(p.grad for p in module.parameters()))])
        module.zero_grad()
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("variant", "extent"),
    [("theta_minus", "global"), ("theta_minus", 8), ("theta", 2), ("theta_plus", 4), ("theta_plus", "global")],
)
def test_fused_equals_reference_in_a_network(monkeypatch, variant, extent, memory_format):
    """Float32 without TF32, and the norms of the gradients: single elements flip with a ReLU's sign."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    networks = []
    for implementation in ("reference", "fused"):
        torch.manual_seed(0)
        network = build_model("resnet50", ge=variant, extent=extent, image_size=64, implementation=implementation)
        networks.append(network.cuda().to(memory_format=memory_format))
    x = torch.randn(8, 3, 64, 64, device="cuda").to(memory_format=memory_format)
    found = []
    for network in networks:
        loss = network(x).square().mean()
        loss.backward()
        norms = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None])
        statistics = torch.cat([b.flatten() for name, b in network.named_buffers() if "running" in name])
        found.append((loss.detach(), norms, statistics))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        ["trainer=gpu"],
        ["trainer=gpu", "trainer.deterministic=true"],
        ["trainer=gpu", "trainer.compile=true"],
        ["trainer=gpu", "trainer.compile=true", "trainer.compile_mode=reduce-overhead"],
    ],
)
def test_a_run_on_the_gpu(run, tmp_path, arguments):
    done = run("train", "ge=theta_plus", "ge.extent=4", "debug=limit", "logger=none", *arguments)
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("outputs/**/result.json"))
    assert result["gpu"]
    assert result["peak_memory_bytes"]["gpu"] > 0
    (folder,) = (str(path.parent) for path in tmp_path.glob("outputs/**/result.json"))
    assert "identical to the record" in run("evaluate", f"run={folder}").stdout.splitlines()


@pytest.mark.parametrize("feed", ["resident", "reference"])
def test_a_feed_on_the_gpu(run, tmp_path, feed):
    done = run("train", "trainer=gpu", "debug=limit", "logger=none", f"feed={feed}")
    assert done.returncode == 0, done.stderr


def test_resident_batches_are_the_same_on_the_gpu():
    pixels = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    images = ArrayImages(pixels, np.arange(500) % 10)
    cpu, gpu = (
        ResidentImages(images, AugmentationConfig("pad", 4, True), channels=3, seed=0, device=torch.device(device))
        for device in ("cpu", "cuda")
    )
    for epoch in range(3):
        a, b = (resident.batch(epoch, torch.arange(100, 300)) for resident in (cpu, gpu))
        assert b.images.device.type == "cuda"
        assert torch.equal(a.images, b.images.cpu())
        assert torch.equal(a.labels, b.labels.cpu())


@pytest.mark.parametrize("feed", ["resident", "folder", "reference"])
def test_no_step_waits_for_the_gpu(tmp_path, feed):
    arguments = [
        "ge=theta_plus",
        "trainer=gpu",
        "logger=none",
        "trainer.max_epochs=2",
        "trainer.limit_train_batches=12",
    ]
    if feed == "folder":
        make_photo_folder(tmp_path / "photos", classes=4, train=64, val=16)
        arguments += ["model=resnet50", "data=imagenet", f"data.root={tmp_path}/photos", "data.num_classes=4"]
        arguments += ["optim.batch_size=4", "feed.workers=2"]
    else:
        arguments += [f"feed={feed}"]
    assert train(job(tmp_path / "run", *arguments, trouble("RefusedWaits"))) is not None


@pytest.mark.parametrize("engine", ["threads", "workers"])
def test_photographs_on_the_gpu(run, tmp_path, engine):
    photos = make_photo_folder(tmp_path / "photos", classes=4, train=64, val=16)
    assert photos
    done = run(
        "train", "model=resnet50", "ge=theta", "data=imagenet", "data.root=photos", "data.num_classes=4", "trainer=gpu",
        "trainer.max_epochs=1", "optim.batch_size=16", "feed.workers=4", f"feed.engine={engine}", "logger=none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])  # the second one has a gradient scaler
def test_preempted_and_resumed_equals_uninterrupted_on_the_gpu(run, tmp_path, precision):
    arguments = ["ge=theta_plus", "trainer=gpu", f"trainer.precision={precision}", "trainer.deterministic=true"]
    arguments += ["schedule.epochs=2", "trainer.limit_val_batches=4", "logger=none"]
    assert run("train", *arguments, "outputs=straight").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "geexp.train", *arguments, "outputs=broken"],
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED="1"),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    for line in process.stderr:
        if "epoch 1/2" in line:
            process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 75
    assert run("train", *arguments, "outputs=broken").returncode == 0
    straight, broken = (
        torch.load(next((tmp_path / name).glob("**/last.ckpt")), weights_only=True) for name in ("straight", "broken")
    )
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, broken["state_dict"][name]), name
