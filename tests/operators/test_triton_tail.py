"""The tail's Triton kernels: their results by Triton's interpreter, and the code that is made for GPUs, without one."""

import importlib.util

import pytest

from tests.conftest import SOURCES, python

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def test_results_by_the_interpreter():
    """A process of its own, because Triton decides at import whether it interprets."""
    options = "-q", "--no-header", "-p", "no:cacheprovider"
    done = python(
        "-m", "pytest", *options, "tests/operators/interpreted_tail.py", cwd=SOURCES.parent, TRITON_INTERPRET="1"
    )
    assert done.returncode == 0, done.stdout[-10_000:]
