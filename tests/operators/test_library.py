"""``import geexp`` as a library of operators."""

import subprocess
import sys

from tests.conftest import environment

PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("yaml", "hydra", "omegaconf", "timm", "lightning", "lightning_fabric", "pandas"):
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Blocked())
import geexp
assert "torch" not in sys.modules
import torch
operator = geexp.GatherExcite(8, variant="theta", extent=2)
operator(torch.randn(2, 8, 6, 6)).sum().backward()
"""


def test_operators_need_torch_only():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
