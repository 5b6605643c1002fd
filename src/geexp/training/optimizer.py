"""SGD with the paper's parameter groups (from the authors' network definitions)."""

from typing import Any

import torch
from torch import nn

from geexp.config.schema import OptimConfig


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Three groups: ``weights``; ``bn`` (no decay); ``biases`` of other layers (no decay, twice the rate).

    ``decay_bn_and_bias`` and ``bias_lr_factor`` switch the two differences off. Empty groups are left out.
    """
    by_name: dict[str, list[nn.Parameter]] = {"weights": [], "bn": [], "biases": []}
    for module in model.modules():
        is_bn = isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, parameter in module.named_parameters(recurse=False):
            by_name["bn" if is_bn else "biases" if name == "bias" else "weights"].append(parameter)
    decay = {"weights": optim.weight_decay, "bn": 0.0, "biases": 0.0}
    if optim.decay_bn_and_bias:
        decay = dict.fromkeys(decay, optim.weight_decay)
    return [
        {
            "name": name,
            "params": parameters,
            "weight_decay": decay[name],
            "lr": optim.lr * (optim.bias_lr_factor if name == "biases" else 1.0),
        }
        for name, parameters in by_name.items()
        if parameters
    ]


def make_sgd(model: nn.Module, optim: OptimConfig) -> torch.optim.SGD:
    groups = parameter_groups(model, optim)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)
