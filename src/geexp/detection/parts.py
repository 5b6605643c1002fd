"""A backbone taken apart for detection: its stages in order, the shapes they give, and BN at rest."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from geexp.backbones.anatomy import dry_run, stages
from geexp.backbones.preact_resnet import PreActResNet
from geexp.operators import DepthwiseProduct


def feature_parts(backbone: nn.Module) -> OrderedDict[str, nn.Module]:
    """The children that make the last feature map, in their order and by their names: the stem, then the stages.

    Raises:
        ValueError: for a network without stages, or whose stages do not end in an activation.
    """
    if isinstance(backbone, PreActResNet):
        raise ValueError(
            "a pre-activation network's stages end in a sum without BN and ReLU, which proposals and regions cannot be "
            "taken from: take resnet50, resnet101, resnet152, shufflenet_g3 or one of timm's ResNets"
        )
    last = list(stages(backbone).values())[-1]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in backbone.named_children():
        parts[name] = child
        if child is last:
            break
    return parts


def output_shape(module: nn.Module, channels: int, height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of what ``module`` makes of one such map; nothing is computed and nothing changed."""
    shapes: list[torch.Size] = []
    handle = module.register_forward_hook(lambda _m, _i, output: shapes.append(output.shape[1:]))
    try:
        dry_run(module, (channels, height, width))
    finally:
        handle.remove()
    C, H, W = shapes[-1]
    return C, H, W


def refuse_fixed_size(module: nn.Module) -> None:
    """Raise ``ValueError`` if a gather in ``module`` has a kernel as large as one certain map."""
    for child in module.modules():
        if isinstance(child, DepthwiseProduct):
            H, W = child.kernel_size
            raise ValueError(
                f"extent='global': GE-θ and GE-θ⁺ gather with a kernel as large as the map, here {H}x{W}, and a "
                "detector's maps have the size of its images, which differ. Take extent 2, 4 or 8, or a variant that "
                "pools, theta_minus or se, global or not"
            )


def freeze_batch_norm(module: nn.Module) -> None:
    """Make every BN in ``module`` the fixed affine map that it is in evaluation, those of GE's gathers too.

    Its four tensors become buffers under the names they have: ``train()`` wakes nothing, and no optimiser gets them.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps).to(child.weight)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)
