"""Gather-Excite (Hu, Shen, Albanie, Sun, Vedaldi, NeurIPS 2018), reproduced.

The names in ``__all__`` are the public library. torch is imported when one of them is first used, which keeps
``python -m geexp.train --help`` fast. ``GatherExcite`` depends on torch only, the others also on timm and PyYAML.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geexp.backbones import add_gather_excite, build_model, register_timm_models
    from geexp.operators import GatherExcite

__all__ = ["GatherExcite", "__version__", "add_gather_excite", "build_model", "register_timm_models"]

try:
    __version__ = version("geexp")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "unknown"

_MODULES = {
    "GatherExcite": "geexp.operators",
    "add_gather_excite": "geexp.backbones",
    "build_model": "geexp.backbones",
    "register_timm_models": "geexp.backbones",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'geexp' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
