"""Parameters and multiply-accumulates, counted as the paper counts them (checked against every row of its tables).

Convolutions and fully-connected layers count one MAC per multiplication, the excite product ONE per element; pooling,
BN, activations, resizing and the residual sum count zero. The paper's #Params includes BN's running mean and variance,
since Caffe counts all blobs of a layer.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from geexp.backbones.anatomy import dry_run, forward_hooks, stages
from geexp.operators import Excite


@dataclass(frozen=True)
class Part:
    """The count of one part of a network, for one image."""

    params: int = 0
    params_with_bn_statistics: int = 0
    macs: int = 0

    def __add__(self, other: "Part") -> "Part":
        return Part(
            self.params + other.params,
            self.params_with_bn_statistics + other.params_with_bn_statistics,
            self.macs + other.macs,
        )


@dataclass(frozen=True)
class Complexity:
    """The count of a network by part: ``stem``, ``stage2`` …, ``head``."""

    parts: dict[str, Part]

    @property
    def total(self) -> Part:
        return sum(self.parts.values(), Part())

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self.total), "parts": {name: asdict(part) for name, part in self.parts.items()}}


def count_complexity(model: nn.Module, image_shape: tuple[int, int, int]) -> Complexity:
    """Count ``model`` for one image of shape (C, H, W).

    The forward pass runs on the meta device, whatever device the model is on.
    """
    macs = _count_macs(model, image_shape)
    stage_of = {id(module): f"stage{s}" for s, stage in stages(model).items() for module in stage.modules()}
    names = ["stem", *(f"stage{s}" for s in stages(model)), "head"]
    parts = dict.fromkeys(names, Part())
    current = "stem"
    for name, module in model.named_modules():  # in order of definition: the head follows the last stage
        place = stage_of.get(id(module))
        if place is not None:
            current = place
        elif current != "stem":
            current = "head"
        own = list(module.parameters(recurse=False))
        counted = sum(p.numel() for p in own)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            counted += 2 * module.num_features
        parts[current] += Part(sum(p.numel() for p in own if p.requires_grad), counted, macs.get(name, 0))
    return Complexity(parts)


def _count_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    counted = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear, Excite))}
    macs = dict.fromkeys(counted, 0)

    def record(name: str, output: Tensor) -> None:
        module = counted[name]
        if isinstance(module, nn.Conv2d):
            per_output = math.prod(module.kernel_size) * module.in_channels // module.groups
        else:
            per_output = module.in_features if isinstance(module, nn.Linear) else 1  # the excite product
        macs[name] += output.numel() * per_output

    with forward_hooks(counted, record):
        dry_run(model, image_shape)
    return macs
