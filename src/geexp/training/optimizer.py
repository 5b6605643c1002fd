"""Optimisers with the paper's parameter groups (source: the authors' network definitions)."""

from typing import Any

import torch
from rich.table import Table
from torch import nn

from geexp.config.compose import is_ours
from geexp.config.errors import ConfigError
from geexp.config.protocol import base_rate
from geexp.config.schema import OptimConfig
from geexp.registry import bound


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """The parameter groups ``weights``, ``bn`` and ``biases`` of other layers.

    In the authors' network definitions BN and biases have no decay, and biases twice the rate. ``decay_bn``,
    ``decay_biases`` and ``bias_lr_factor`` change that, for the CIFAR baselines, whose code treats all alike.
    Empty groups are left out. The schedule multiplies each group's ``base_lr``.
    """
    by_name: dict[str, list[nn.Parameter]] = {"weights": [], "bn": [], "biases": []}
    for module in model.modules():
        is_bn = isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, parameter in module.named_parameters(recurse=False):
            by_name["bn" if is_bn else "biases" if name == "bias" else "weights"].append(parameter)
    decayed = {"weights": True, "bn": optim.decay_bn, "biases": optim.decay_biases}
    factor = {"weights": 1.0, "bn": 1.0, "biases": optim.bias_lr_factor}
    rate = base_rate(optim)
    return [
        {
            "name": name,
            "params": parameters,
            "weight_decay": optim.weight_decay if decayed[name] else 0.0,
            "lr": rate * factor[name],
            "base_lr": rate * factor[name],
        }
        for name, parameters in by_name.items()
        if parameters
    ]


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Build ``optim._target_`` over the parameter groups: ``sgd``, or any other torch optimiser.

    Raises:
        ConfigError: for a wrong import path, invalid arguments, or an object that is not a torch optimiser.
    """
    groups, lr = parameter_groups(model, optim), base_rate(optim)
    if is_ours(optim._target_):
        momentum = 0.9 if optim.momentum is None else optim.momentum
        return sgd(groups, lr=lr, momentum=momentum, nesterov=bool(optim.nesterov), fused=optim.clip_norm is None)
    try:
        make = bound(str(optim._target_), optim.arguments, called_with=("lr",), after=1)
    except ValueError as error:
        raise ConfigError(f"optim._target_={error}.") from error
    where = f"optim._target_={optim._target_}"
    try:
        optimizer = make(groups, lr=lr)
    except ValueError as error:  # torch's optimisers check their values
        raise ConfigError(f"{where}: {error}.") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"{where}: makes a {type(optimizer).__name__}, not a torch.optim.Optimizer.")
    return optimizer


def sgd(groups: list[dict[str, Any]], *, lr: float, momentum: float, nesterov: bool, fused: bool) -> torch.optim.SGD:
    """SGD; ``fused`` takes half the time on the CPU.

    Gradient clipping needs ``fused=False``: in half precision a fused step unscales the gradients after clipping.
    """
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)


def group_table(optimizer: torch.optim.Optimizer) -> Table:
    table = Table(title="parameter groups", title_justify="left")
    for column in ("group", "tensors", "parameters", "learning rate", "weight decay", "momentum"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for group in optimizer.param_groups:
        momentum = f"{group['momentum']:g}" if "momentum" in group else ""
        momentum += " Nesterov" if group.get("nesterov") else ""
        parameters = f"{sum(parameter.numel() for parameter in group['params']):,}"
        numbers = (f"{group['base_lr']:g}", f"{group['weight_decay']:g}", momentum)
        table.add_row(group["name"], str(len(group["params"])), parameters, *numbers)
    return table
