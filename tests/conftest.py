"""Commands are tested as commands: real processes, in a folder that is not the checkout."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.support.processes import default_sigint

if TYPE_CHECKING:
    from tests.support.forked import Forked

# Several workers of pytest-xdist share the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

Command = Callable[..., subprocess.CompletedProcess[str]]


SOURCES = Path(__file__).parents[1] / "src"


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: the tester's, less what would change its behaviour, and this checkout's sources."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "GEEXP_", "HYDRA_"))}
    kept["GEEXP_CACHE"] = os.environ["GEEXP_CACHE"]
    path = [*filter(None, [more.pop("PYTHONPATH", "")]), str(SOURCES)]
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(path)} | more


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered from run to run stays out of the tester's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEEXP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def python(
    *arguments: str, cwd: Path | None = None, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The finished process of ``python <arguments>`` with the environment of a command."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        preexec_fn=default_sigint,
    )


@pytest.fixture
def run(tmp_path: Path) -> Command:
    """``run("train", "ge=theta", …)``: the finished process of ``python -m geexp.train``, in an empty folder."""
    return lambda entry, *arguments, **variables: python("-m", f"geexp.{entry}", *arguments, cwd=tmp_path, **variables)


@pytest.fixture(scope="session")
def forked() -> Iterator["Forked"]:
    """Commands as processes, one or several of them, at the price of a fork."""
    from tests.support.forked import Forked  # which needs the environment above

    forked = Forked()
    yield forked
    forked.close()
