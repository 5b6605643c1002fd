"""Initial weights: from a classification run of ours, or from a file of torchvision, timm or others."""

import argparse
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from geexp.backbones.anatomy import blocks, slot
from geexp.config.errors import ConfigError, DataError
from geexp.config.ranks import rank
from geexp.config.schema import TrainConfig
from geexp.operators import GatherExcite
from geexp.runs.job import weights_file
from geexp.training.checkpoints import INFO, load_checkpoint
from geexp.training.network import network_of

log = logging.getLogger(__name__)

# Where training scripts keep the state dict among other things; the first of these that is there is loaded.
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "net", "network", "state_dict_ema", "model_ema", "ema")


class Loaded(NamedTuple):
    """One line about what was loaded and what was not; ``run`` is the configuration of the run it came from, if any."""

    description: str
    run: TrainConfig | None = None


def start_from_weights(network: nn.Module, config: TrainConfig) -> None:
    """Load ``config.weights`` into the network of a classification run, and log what was loaded.

    Raises:
        ConfigError: if the file is missing, or if ``model.stride_in`` has to be set for it.
        DataError: see ``load_weights``.
    """
    path, stride = weights_file(config), config.model.stride_in
    assert path is not None
    description, run = load_weights(network, path)
    if run is None and config.model.stride_in_unset:
        raise ConfigError(
            f"model.stride_in=null: {path} is not from a run of geexp, and its tensors do not show which convolution "
            "has the stride. Set model.stride_in=3x3 for a network of torchvision or timm, else 1x1."
        )
    if rank() != 0:
        return
    if run is None and stride == "3x3":
        description += "; model.stride_in=3x3, as in torchvision and timm"
    log.info("%s", description)
    if run is None and stride == "1x1":
        log.warning("model.stride_in=1x1: if weights=%s is from torchvision or timm, leave it out.", config.weights)


def load_weights(network: nn.Module, path: Path, *, classifier: bool = True) -> Loaded:
    """Load weights from a file into a network, by the names of its tensors.

    A classifier for another number of classes starts untrained, and so does Gather-Excite in blocks where the file's
    network has none. Any other difference between the two is an error.

    Args:
        path: a checkpoint of a classification run of ours (``.ckpt``), or tensors by parameter name (``.safetensors``,
            or written by ``torch.save``), alone or in the checkpoint of another training script. Prefixes like DDP's
            ``module.``, torch.compile's ``_orig_mod.`` and Lightning's ``model.`` are removed; the numbers are
            converted to the network's precision.
        classifier: load the classifier (the last linear layer) as well, if it fits.

    Raises:
        DataError: for a file that cannot be read as one of these, or that belongs to another network.
    """
    content = _read(path)
    run = _run_of(network, path) if INFO in content else None
    tensors = _state_dict(content, path)
    weights = _without_prefix(tensors, network.state_dict())
    head = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, nn.Linear))[-1:]
    its_head = {name: tensor for name, tensor in weights.items() if name.startswith(head)}
    own_head = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(head)}
    head_fits = classifier and _shapes(its_head) == _shapes(own_head)
    kept = weights if head_fits else {name: weights[name] for name in weights.keys() - its_head.keys()}
    new = {
        name: f"{prefix}."
        for name, (prefix, operator) in _operators(network).items()
        if operator.state_dict() and not any(key.startswith(f"{prefix}.") for key in kept)
    }
    untrained = (*new.values(), *(() if head_fits else head))
    own = _shapes({name: tensor for name, tensor in network.state_dict().items() if not name.startswith(untrained)})
    given = _shapes(kept)
    reshaped = {
        f"{name}, {given[name]} in the file and {own[name]} here"
        for name in given.keys() & own.keys()
        if given[name] != own[name]
    }
    problems = [
        f"{len(names)} tensors {what}, such as {min(names)}"
        for what, names in (
            ("of the file have no place in the network", given.keys() - own.keys()),
            ("of the network are not in the file", own.keys() - given.keys()),
            ("have another shape", reshaped),
        )
        if names
    ]
    if problems:
        raise DataError(
            f"weights {path}: not of this network: {'; '.join(problems)}. Choose the model that they belong to."
        )
    network.load_state_dict(kept, strict=False)
    description = f"{len(given)} tensors loaded from {path}"
    if its_head and not head_fits:
        description += f", {len(its_head)} of its classifier left out"
    if len(weights) < len(tensors):
        description += f", {len(tensors) - len(weights)} of other modules left out"
    if classifier and not head_fits:
        description += f"; new classifier for {len(next(iter(own_head.values())))} classes"
    if new:
        description += f"; Gather-Excite starts new in {', '.join(new)}"
    return Loaded(description, run)


def _run_of(network: nn.Module, path: Path) -> TrainConfig:
    """The configuration of the run of a checkpoint. Raises ``DataError`` if its network differs from ``network`` in
    settings that parameters do not show: strides, extents, pooling."""
    config = load_checkpoint(path).config
    if config.detects:
        raise DataError(f"weights {path}: from a run with detector={config.detector.layout}, not of a classifier.")
    with torch.device("meta"):
        source = network_of(config)
    operators, its_operators = _operators(network), _operators(source)
    for name, (_, operator) in operators.items():
        if name in its_operators and _describe(operator) != _describe(its_operators[name][1]):
            raise DataError(
                f"weights {path}: {name} has {_describe(its_operators[name][1])} in that run and "
                f"{_describe(operator)} in this one. Use the same operators."
            )
    missing = its_operators.keys() - operators.keys()
    if missing:
        raise DataError(
            f"weights {path}: that run has Gather-Excite in {', '.join(sorted(missing))}, where this network has none. "
            "Use the same operators."
        )
    strides, its_strides = (
        {name: child.stride for name, child in network.named_modules() if isinstance(child, nn.Conv2d)}
        for network in (network, source)
    )
    for name in sorted(strides.keys() & its_strides.keys()):
        if strides[name] != its_strides[name]:
            raise DataError(
                f"weights {path}: {name} has stride {its_strides[name]} in that run and {strides[name]} in this one. "
                f"Set model.stride_in={config.model.stride_in or '1x1'}, as in that run."
            )
    return config


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"weights {path}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain values, the options of many scripts
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and safetensors raise whatever the damage provokes
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise DataError(
                f"weights {path}: cannot be read ({type(error).__name__}): damaged, or neither tensors saved by "
                "torch.save nor .safetensors."
            ) from error
        raise DataError(
            f"weights {path}: contains Python objects ({refused[1]}) beside its tensors, and loading them could run "
            "code, so torch.load(weights_only=True) refuses it. If you trust its origin, write the tensors to a file "
            f'of their own with python -c "import torch; c = torch.load({str(path)!r}, weights_only=False, '
            "map_location='cpu'); torch.save(c['state_dict'], 'weights.pth')\", or with c['model'] or c.state_dict(), "
            "depending on what was saved."
        ) from error
    return content if isinstance(content, dict) else {}


def _state_dict(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    inner = next((content[key] for key in _STATE_DICTS if isinstance(content.get(key), dict)), None)
    if inner is not None:
        return _state_dict(inner, path)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor) and isinstance(name, str)}
    if not tensors:
        entries = f"; its entries are {shorten(', '.join(map(str, content)), 200)}" if content else ""
        raise DataError(
            f"weights {path}: not a dictionary of tensors by parameter name (a state dict), alone or as an entry "
            f"{', '.join(_STATE_DICTS[:3])}, … of a checkpoint{entries}."
        )
    return tensors


def _without_prefix(tensors: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors below the prefix under which the most ``names`` are found, without it."""
    names = list(names)
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    prefixes = (name.removesuffix(own) for name in tensors for own in names if f".{name}".endswith(f".{own}"))
    prefix = max(
        dict.fromkeys(prefixes), key=lambda prefix: sum(prefix + name in tensors for name in names), default=""
    )
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    """Without BN's counters, which older files do not have."""
    return {name: list(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


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
