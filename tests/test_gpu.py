"""What only a GPU can show; run by make test-gpu."""

import json

import pytest
import torch

from geexp import GatherExcite
from geexp.operators import VARIANTS

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


@pytest.mark.parametrize(
    "arguments",
    [["trainer=gpu"], ["trainer=gpu", "trainer.deterministic=true"], ["trainer=gpu", "trainer.compile=true"]],
)
def test_a_run_on_the_gpu(run, tmp_path, arguments):
    done = run("train", "ge=theta_plus", "ge.extent=4", "debug=limit", "logger=none", *arguments)
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("outputs/**/result.json"))
    assert result["gpu"]
    assert result["peak_memory_bytes"]["gpu"] > 0
    (folder,) = (str(path.parent) for path in tmp_path.glob("outputs/**/result.json"))
    assert "identical to the record" in run("evaluate", f"run={folder}").stdout
