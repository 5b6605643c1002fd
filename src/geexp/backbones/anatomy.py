"""The parts of a residual network by the paper's names: stages 2 to 5, blocks ``conv4_6``, and the slots for GE.

All our backbones, and timm's ResNet family, hold stage s as the child ``layer{s-1}``, a sequence of blocks. The slot is
the block's attribute ``ge``; timm calls the same place ``se``.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from geexp.backbones.preact_resnet import PreActResNet


def stages(model: nn.Module) -> dict[int, nn.Sequential]:
    """The stages by number, first to last. Raises ``ValueError`` for a model that has none."""
    found = {s: getattr(model, f"layer{s - 1}") for s in range(2, 6) if hasattr(model, f"layer{s - 1}")}
    if len(found) < 2:
        raise ValueError(
            f"{type(model).__name__} has no layer1 and layer2: only networks of the ResNet family have stages"
        )
    return found


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The residual blocks by the paper's names, ``conv2_1`` first."""
    return {
        f"conv{stage}_{index}": block
        for stage, sequence in stages(model).items()
        for index, block in enumerate(sequence, start=1)
    }


def named_blocks(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """The blocks of these names (all, if None), in their order.

    Raises:
        ValueError: for a name that no block has.
    """
    available = blocks(model)
    if names is None:
        return available
    wanted = list(names)
    for name in wanted:
        if name not in available:
            raise ValueError(f"no block {name!r}: the blocks are {', '.join(available)}")
    return {name: available[name] for name in wanted}


def rectified_blocks(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """For each named block (all, if None) the module that puts out what the paper calls ``conv4-1-relu``.

    That is the block itself where it ends in its ReLU. With pre-activation the block ends in the bare sum, and the
    first ReLU behind it is the next block's first, or the network's last.

    Raises:
        ValueError: for a name that no block has.
    """
    wanted = named_blocks(model, names)
    if not isinstance(model, PreActResNet):
        return wanted
    everything = blocks(model)
    _, *following = everything.values()
    behind = dict(zip(everything, [*following, model], strict=True))
    return {name: behind[name].relu for name in wanted}  # type: ignore[misc]


def slot(block: nn.Module) -> str:
    """The name of the attribute of ``block`` where GE goes. Raises ``ValueError`` for a block without such a place."""
    for name in ("ge", "se"):
        if hasattr(block, name):
            return name
    raise ValueError(f"{type(block).__name__} has no slot for Gather-Excite (an attribute 'ge', or timm's 'se')")


def block_outputs(model: nn.Module, x: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Run the model on images ``[N, C, H, W]`` and return the outputs of the named blocks (all, if None), in order.

    Raises:
        ValueError: for a name that no block has.
    """
    outputs: dict[str, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _m, _i, out, name=name: outputs.__setitem__(name, out))
        for name, block in named_blocks(model, names).items()
    ]
    try:
        with _eager():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def slot_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, torch.Size]:
    """The shape ``[1, C, H, W]`` that reaches each block's slot for one image (C, H, W); nothing is computed.

    Slots that hold None are given an identity for the while.
    """
    shapes: dict[str, torch.Size] = {}
    handles, lent = [], []
    for name, block in blocks(model).items():
        attribute = slot(block)
        if getattr(block, attribute) is None:
            setattr(block, attribute, nn.Identity())
            lent.append((block, attribute))
        handles.append(
            getattr(block, attribute).register_forward_pre_hook(
                lambda _m, inputs, name=name: shapes.__setitem__(name, inputs[0].shape)
            )
        )
    try:
        dry_run(model, image_shape)
    finally:
        for handle in handles:
            handle.remove()
        for block, attribute in lent:
            setattr(block, attribute, None)
    return shapes


def dry_run(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """A forward pass in eval mode for one image (C, H, W) that computes nothing, for the hooks on the model.

    Parameters and buffers are replaced by stand-ins on the meta device for the call; the model is left as it was.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None)
    stand_ins = {name: tensor.to("meta") for name, tensor in tensors.items()}
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), _eager():
            torch.func.functional_call(model, stand_ins, torch.empty(1, *image_shape, dtype=dtype, device="meta"))
    finally:
        for module, training in modes.items():  # one by one: some may have been frozen
            module.training = training


def _eager() -> AbstractContextManager[None]:
    """Hooks added after a model was compiled are seen by its eager code only."""
    return torch.compiler.set_stance("force_eager")
