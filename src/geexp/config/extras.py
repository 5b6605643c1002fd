"""The optional dependencies, and the error if one is not installed."""

from importlib.util import find_spec

from geexp.config.errors import ConfigError

# The modules that each extra in pyproject.toml installs.
EXTRAS = {
    "report": ("matplotlib", "pandas", "tabulate", "jinja2", "plotly", "scipy"),
    "detection": ("pycocotools", "matplotlib"),
    "slurm": ("submitit",),
    "dashboard": ("wandb_workspaces",),
    "decoders": ("torchcodec",),
    "tensorboard": ("tensorboard",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}


def missing(*extras: str) -> list[str]:
    """The modules of these extras that are not installed. Nothing is imported."""
    return [module for extra in extras for module in EXTRAS[extra] if find_spec(module) is None]


def require_extras(purpose: str, *extras: str) -> None:
    """Raise ``ConfigError`` with the command that installs what is missing for ``purpose``."""
    lacking = missing(*extras)
    if lacking:
        raise ConfigError(
            f"{purpose} needs {', '.join(lacking)}, which is not installed. "
            f"Install with: pip install 'geexp[{','.join(extras)}]'"
        )
