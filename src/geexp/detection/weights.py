"""What a detector's backbone starts from: a classification run of ours, a file of weights, or nothing."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from geexp.backbones.anatomy import blocks, slot, stages
from geexp.config.errors import DataError
from geexp.config.schema import TrainConfig
from geexp.operators import GatherExcite
from geexp.training.evaluation import restore


class Loaded(NamedTuple):
    """What was loaded and what was not, in one line; and the run of ours that it was of, if it was one."""

    said: str
    run: TrainConfig | None = None


def load_backbone(backbone: nn.Module, path: Path | None) -> Loaded:
    """Load weights into ``backbone``, before a detector is built of it.

    Args:
        path: a checkpoint of a classification run of ours (``.ckpt``); or a dictionary of tensors by parameter name, as
            torchvision and timm publish them (``.pth``, ``.pt``, ``.safetensors``); None for nothing.

    The classifier is left out. Gather-Excite's operators start new in blocks where the file's network has none.
    Anything else that one of the two has and the other has not is an error.

    Raises:
        DataError: for a file that cannot be read as one of these, or that is of another network.
    """
    if path is None:
        return Loaded("the backbone starts from nothing")
    run = None
    if path.suffix == ".ckpt":
        weights, run = _of_run(backbone, path)
    else:
        weights = _of_file(path)
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    operators = _operators(backbone)
    new = {
        name: f"{prefix}."
        for name, (prefix, operator) in operators.items()
        if operator.state_dict() and not any(key.startswith(f"{prefix}.") for key in kept)
    }
    own = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.startswith(("fc.", *new.values())) and not name.endswith("num_batches_tracked")
    }
    given = {name for name in kept if not name.endswith("num_batches_tracked")}  # older files have none of these
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
    said = [f"{len(given)} tensors loaded from {path}, {len(weights) - len(kept)} of its classifier left out"]
    if new:
        said.append(f"Gather-Excite starts new in {', '.join(new)}")
    first = stages(backbone)[3][0]
    if path.suffix != ".ckpt" and getattr(getattr(first, "conv1", None), "stride", None) == (2, 2):
        said.append("note that torchvision's and timm's weights belong to stride_in=3x3, and this backbone has 1x1")
    return Loaded("; ".join(said), run)


def _of_run(backbone: nn.Module, path: Path) -> tuple[dict[str, Tensor], TrainConfig]:
    """The network's weights, if it is the backbone's in what parameters do not show: strides, extents, pooling."""
    classifier, run, _ = restore(path)
    source = classifier.model
    operators, its_operators = _operators(backbone), _operators(source)
    for name, (_, operator) in operators.items():
        if name in its_operators and _said_of(operator) != _said_of(its_operators[name][1]):
            raise DataError(
                f"weights {path}: in {name} that network has GatherExcite({_said_of(its_operators[name][1])}) and the "
                f"backbone GatherExcite({_said_of(operator)}). Give the backbone the same operators."
            )
    missing = its_operators.keys() - operators.keys()
    if missing:
        raise DataError(
            f"weights {path}: that network was trained with Gather-Excite in {', '.join(sorted(missing))}, where the "
            "backbone has none. Give the backbone the same operators."
        )
    own_convolutions, its_convolutions = (
        {name: child.stride for name, child in network.named_modules() if isinstance(child, nn.Conv2d)}
        for network in (backbone, source)
    )
    shared = own_convolutions.keys() & its_convolutions.keys()
    moved = sorted(name for name in shared if own_convolutions[name] != its_convolutions[name])
    if moved:
        raise DataError(
            f"weights {path}: that network has the stride {its_convolutions[moved[0]]} where the backbone has "
            f"{own_convolutions[moved[0]]}, in {moved[0]}. Give the backbone the same model.stride_in."
        )
    return source.state_dict(), run


def _of_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"weights {path}: there is no such file.")
    try:
        weights = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch, zipfile and safetensors raise whatever the damage provokes
        raise DataError(
            f"weights {path}: cannot be read ({type(error).__name__}): neither tensors saved by torch.save nor "
            ".safetensors, or damaged."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f"weights {path}: not a dictionary of tensors by parameter name (a state dict).")
    return weights


def _operators(network: nn.Module) -> dict[str, tuple[str, GatherExcite]]:
    """Of every block with Gather-Excite: the operator and the prefix of its parameters' names."""
    names = {module: name for name, module in network.named_modules()}
    found = {}
    for name, block in blocks(network).items():
        operator = getattr(block, slot(block))
        if isinstance(operator, GatherExcite):
            found[name] = (names[operator], operator)
    return found


def _said_of(operator: GatherExcite) -> str:
    gather = operator.gather.extra_repr()
    return operator.extra_repr() + (f", {gather}" if gather else "")
