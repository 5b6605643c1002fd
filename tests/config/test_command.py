"""Whose fault an error is: a user's ends in one paragraph and exit code 2, a bug of ours in its traceback and 1."""

import subprocess

import pytest

from tests.conftest import python

# Runs geexp.train with a bug, or a user's error, in what Hydra resolves as ${geexp.run_folder:}.
RAISE = """
import sys
import geexp.runs.job
from geexp.config.errors import ConfigError

def raise_(*arguments, **more):
    {statement}

geexp.runs.job.make_job = raise_
from geexp.train import main
main()
"""


def raising(statement: str, *arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    return python("-c", RAISE.format(statement=statement), *arguments, cwd=cwd)


@pytest.mark.parametrize(
    ("statement", "mode"),
    [
        ("{}['lost']", []),
        ("{}['lost']", ["-m"]),
        ("None.lost", []),
        ("assert False", []),
        ("raise ValueError('x')", []),
    ],
)
def test_a_bug_inside_an_interpolation_shows_its_traceback(tmp_path, statement, mode):
    done = raising(statement, *mode, "seed=1", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "in raise_" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_user_inside_an_interpolation_is_one_paragraph(tmp_path, run):
    done = raising("raise ConfigError('key=value: not so')", "seed=1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "geexp.train: key=value: not so\n")
    for arguments, part in (
        (["ge.extent=3"], "ge.extent=3"),
        (["-m", "ge.extent=2,3"], "job 1 (ge.extent=3)"),
        (["ge.extent=${oc.env:NOPE}"], "NOPE"),
        (["outputs=${no.such.key}"], "no.such.key"),
    ):
        done = run("train", *arguments)
        assert done.returncode == 2
        assert part in done.stderr
        assert done.stderr.startswith("geexp.train: ")
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
