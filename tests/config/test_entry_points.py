"""Start-up: what is shown without training, and that it needs neither torch nor Lightning."""

from pathlib import Path

import pytest
import yaml

from geexp.registry import config_directory
from tests.conftest import python

HEAVY = ("torch", "torchvision", "pytorch_lightning", "timm", "wandb", "matplotlib", "numpy")

# Runs an entry point as python -m does, then names the heavy modules that it has loaded.
PROBE = f"""
import runpy, sys
entry, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(f"geexp.{{entry}}", run_name="__main__", alter_sys=True)
except SystemExit:
    pass
print("LOADED", [name for name in {HEAVY!r} if name in sys.modules])
"""


def probe(*arguments: str, cwd: Path, **variables: str) -> str:
    return python("-c", PROBE, *arguments, cwd=cwd, **variables).stdout


ENTRIES = ("train", "status", "plan", "evaluate", "export", "analyze", "detect", "complexity", "report", "dashboard")


@pytest.mark.parametrize("entry", [*ENTRIES, "pack", "check_data"])
@pytest.mark.parametrize("flag", ["--help", "--cfg=job"])
def test_help_and_cfg_import_nothing_heavy(entry, flag, tmp_path):
    assert probe(entry, flag, cwd=tmp_path).strip().endswith("LOADED []")


def test_wrong_input_and_missing_data_import_nothing_heavy(tmp_path):
    for arguments in (["ge=thetaa"], ["ge.extent=3"], ["data=imagenet"]):
        assert "LOADED []" in probe("train", *arguments, cwd=tmp_path)


def test_completion_imports_nothing_heavy(tmp_path):
    line = {"COMP_LINE": "geexp-train ge=theta", "COMP_POINT": "20"}
    out = probe("train", "-sc", "query=bash", cwd=tmp_path, **line)
    assert "LOADED []" in out
    assert "ge=theta_plus" in out


def test_help_shows_every_group(run):
    text = run("train", "--help").stdout
    groups = {path.name for path in config_directory().iterdir() if path.is_dir()} - {"hydra", "hardware"}
    described = text.split("Groups, with their options")[0]
    for group in groups:
        assert group in described
        assert f"{group}: " in text


def test_cfg_job_shows_all_keys_with_their_values(run):
    config = yaml.safe_load(run("train", "--cfg", "job", "model=resnet50", "ge=theta", "ge.extent=8").stdout)
    assert config["model"]["name"] == "resnet50"
    assert config["model"]["bn_momentum"] == 0.05
    assert config["ge"]["extent"] == 8
    assert {"variant", "stages", "pool", "reduction", "implementation"} <= config["ge"].keys()
