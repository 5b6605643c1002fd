"""Weights for a detector's backbone: from a classification run of ours, or from a file of torchvision or timm."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from geexp.backbones.anatomy import blocks, slot, stages
from geexp.config.errors import DataError
from geexp.config.schema import TrainConfig
from geexp.operators import GatherExcite
from geexp.training.classification import Classification
from geexp.training.evaluation import restore_network


class Loaded(NamedTuple):
    """One line about what was loaded and what was not; ``run`` is the configuration of the run it came from, if any."""

    description: str
    run: TrainConfig | None = None


def load_backbone(backbone: nn.Module, path: Path | None) -> Loaded:
    """Load weights into ``backbone``, before a detector is built from it.

    Args:
        path: a checkpoint of a classification run of ours (``.ckpt``), or a dictionary of tensors by parameter name, as
            published by torchvision and timm (``.pth``, ``.pt``, ``.safetensors``); None loads nothing.

    The classifier is left out. Gather-Excite starts untrained in blocks where the file's network has none. Any other
    difference between the two is an error.

    Raises:
        DataError: for a file that cannot be read as one of these, or that belongs to another network.
    """
    if path is None:
        return Loaded("the backbone starts from random weights")
    weights, run = _weights_of_run(backbone, path) if path.suffix == ".ckpt" else (_weights_of_file(path), None)
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    new = {
        name: f"{prefix}."
        for name, (prefix, operator) in _operators(backbone).items()
        if operator.state_dict() and not any(key.startswith(f"{prefix}.") for key in kept)
    }
    own = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.startswith(("fc.", *new.values())) and not name.endswith("num_batches_tracked")
    }
    given = {name for name in kept if not name.endswith("num_batches_tracked")}  # absent from older files
    problems = [
        f"{len(names)} tensors {what}, such as {min(names)}"
        for what, names in (
            ("of the file have no place in the backbone", given - own.keys()),
            ("of the backbone are not in the file", own.keys() - given),
            ("have another shape", {name for name in given & own.keys() if own[name].shape != kept[name].shape}),
        )
        if names
    ]
    if problems:
        raise DataError(f"weights {path}: not of this backbone: {'; '.join(problems)}.")
    backbone.load_state_dict(kept, strict=False)
    notes = [f"{len(given)} tensors loaded from {path}, {len(weights) - len(kept)} of its classifier left out"]
    if new:
        notes.append(f"Gather-Excite starts new in {', '.join(new)}")
    first = stages(backbone)[3][0]
    if run is None and getattr(getattr(first, "conv1", None), "stride", None) == (2, 2):
        notes.append("torchvision's and timm's weights are for stride_in=3x3, but this backbone has 1x1")
    return Loaded("; ".join(notes), run)


def _weights_of_run(backbone: nn.Module, path: Path) -> tuple[dict[str, Tensor], TrainConfig]:
    """The weights of a run's network. Raises ``DataError`` if it differs from the backbone in settings that parameters
    do not show: strides, extents, pooling."""
    source, checkpoint = restore_network(Classification(), path)
    operators, its_operators = _operators(backbone), _operators(source)
    for name, (_, operator) in operators.items():
        if name in its_operators and _describe(operator) != _describe(its_operators[name][1]):
            raise DataError(
                f"weights {path}: {name} has {_describe(its_operators[name][1])} in that network and "
                f"{_describe(operator)} in the backbone. Give the backbone the same operators."
            )
    missing = its_operators.keys() - operators.keys()
    if missing:
        raise DataError(
            f"weights {path}: that network was trained with Gather-Excite in {', '.join(sorted(missing))}, where the "
            "backbone has none. Give the backbone the same operators."
        )
    strides, its_strides = (
        {name: child.stride for name, child in network.named_modules() if isinstance(child, nn.Conv2d)}
        for network in (backbone, source)
    )
    for name in sorted(strides.keys() & its_strides.keys()):
        if strides[name] != its_strides[name]:
            raise DataError(
                f"weights {path}: {name} has stride {its_strides[name]} in that network and {strides[name]} in the "
                "backbone. Give the backbone the same model.stride_in."
            )
    return source.state_dict(), checkpoint.config


def _weights_of_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"weights {path}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and safetensors raise whatever the damage provokes
        raise DataError(
            f"weights {path}: cannot be read ({type(error).__name__}): damaged, or neither tensors saved by torch.save "
            "nor .safetensors."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f"weights {path}: not a dictionary of tensors by parameter name (a state dict).")
    return weights


def _operators(network: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """For each block with Gather-Excite: the prefix of the operator's parameters, and the operator."""
    names = {module: name for name, module in network.named_modules()}
    operators = {name: getattr(block, slot(block)) for name, block in blocks(network).items()}
    return {
        name: (names[operator], operator)
        for name, operator in operators.items()
        if not isinstance(operator, nn.Identity | None)
        and not type(operator).__module__.startswith("timm.")  # the SE of timm's own networks
    }


def _describe(operator: nn.Module) -> str:
    settings = [operator.extra_repr()]
    if isinstance(operator, GatherExcite):
        settings.append(operator.gather.extra_repr())
    return f"{type(operator).__name__}({', '.join(filter(None, settings))})"
