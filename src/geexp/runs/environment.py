"""The environment of a result: versions, commit, hardware, peak memory."""

import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("geexp", "torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "omegaconf", "numpy")


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": git_commit(),
        "platform": platform.platform(),
        "host": platform.node(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_commit() -> str | None:
    """The commit of geexp's source, with ``-dirty`` if it or ``conf/`` has uncommitted changes; None without git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--", ".", "../../conf") else commit


def peak_memory() -> dict[str, int | None]:
    """Peak memory in bytes: resident memory of this process, and the GPU allocator's."""
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "gpu": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
