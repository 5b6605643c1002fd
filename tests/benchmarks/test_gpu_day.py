"""The stages of scripts/gpu_day.sh, with commands that do nothing: what is kept, what is left, what is done again."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/gpu_day.sh"
STEPS = [f"step-{variant}" for variant in ("theta_minus", "theta", "theta_plus", "se")]
# Notes its arguments; steps.py fails for SE.
PYTHON = """#!/bin/sh
echo "$@" >>{folder}/commands
case "$*" in
    *steps.py*" se "*) echo "no kernel"; exit 3 ;;
esac
echo "done"
"""


@pytest.fixture
def day(tmp_path):
    """``day(STAGES="device")``: the finished script, and the commands that it started."""
    python = tmp_path / "python"
    python.write_text(PYTHON.format(folder=tmp_path))
    python.chmod(0o755)

    def run(**settings):
        (tmp_path / "commands").write_text("")
        variables = os.environ | {"DEVICE": "cpu", "OUT": str(tmp_path / "out"), "PYTHON": str(python)} | settings
        done = subprocess.run([SCRIPT], env=variables, capture_output=True, text=True, timeout=60)
        return done, (tmp_path / "commands").read_text()

    return run


def test_what_is_done_is_skipped_and_what_failed_is_done_again(day, tmp_path):
    done, commands = day(STAGES="device steps runs")
    assert done.returncode == 1
    assert commands.count("steps.py") == 4
    assert "left: step-se: exit code 3: no kernel" in done.stdout
    assert done.stdout == (tmp_path / "out/summary.md").read_text()
    assert {path.stem for path in tmp_path.glob("out/*.txt")} == {"device", *STEPS[:3], "runs"}
    assert [path.stem for path in tmp_path.glob("out/*.log")] == ["step-se"]

    done, commands = day(STAGES="device steps runs")
    assert (commands.count("steps.py"), commands.count("geexp.train")) == (1, 0)
    done, commands = day(STAGES="device runs")
    assert (done.returncode, commands.count("geexp.train")) == (0, 0)


def test_no_stage_begins_without_time(day):
    day(STAGES="device")
    done, commands = day(STAGES="device tails", MINUTES="0")
    assert done.returncode == 1
    assert "left: tails: no time left" in done.stdout
    assert "operators.py" not in commands


def test_wrong_settings(day):
    done, commands = day(STAGES="device nap")
    assert done.returncode == 2
    assert "there is no stage nap" in done.stderr
    assert commands == ""
