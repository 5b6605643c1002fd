"""Parts of a residual network by the paper's names: stages 2 to 5, blocks such as ``conv4_6``, each block's GE slot.

Interface of a backbone, built-in or custom: stage s is the child ``layer{s-1}``, a sequence of blocks; ``layer1`` and
``layer2`` are required. The slot is a block's attribute ``ge`` (an empty slot holds ``nn.Identity``) or timm's ``se``
(an empty slot holds None), called on the residual branch immediately before the sum. Some features need more:

- selectivity: blocks end in their ReLU. A pre-activation network sets ``preactivated = True`` instead: its blocks begin
  with BN and a ReLU named ``relu``, and the network's own ``relu`` follows the last block.
- pruning: blocks have ``shortcut(x)`` and ``join(branch, shortcut)``; the network has ``forward_head(features)``, and
  ``after_stages(x)`` if there are layers between the last block and the head.
- ``model.zero_init_residual=true``: blocks have ``zero_init_last()``.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ClassifierHead(nn.Module):
    """Base of geexp's backbones: features ``[N, num_features, h, w]`` → global average → logits ``[N, num_classes]``.

    Methods are named as in timm. With ``num_classes=0`` the output is the averaged features.
    """

    num_features: int
    num_classes: int
    fc: nn.Module

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[N, in_channels, H, W]`` → the last stage's features ``[N, num_features, h, w]``."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features → logits; with ``pre_logits`` → the averaged features ``[N, num_features]``."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by one with ``num_classes`` outputs, initialised N(0, 0.01²) with zero biases."""
        self.num_classes = num_classes
        if num_classes == 0:
            self.fc = nn.Identity()
            return
        self.fc = nn.Linear(self.num_features, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)


def stages(model: nn.Module) -> dict[int, nn.Sequential]:
    """The stages by the paper's numbers, in order.

    Raises:
        ValueError: for a network without ``layer1`` and ``layer2``.
    """
    found = {s: getattr(model, f"layer{s - 1}") for s in range(2, 6) if hasattr(model, f"layer{s - 1}")}
    if len(found) < 2:
        raise ValueError(
            f"{type(model).__name__} has no layer1 and layer2: only networks of the ResNet family have stages"
        )
    return found


def blocks_by_stage(model: nn.Module) -> dict[int, dict[str, nn.Module]]:
    """The residual blocks of each stage by the paper's names, ``conv2_1`` first."""
    return {
        stage: {f"conv{stage}_{index}": block for index, block in enumerate(sequence, start=1)}
        for stage, sequence in stages(model).items()
    }


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The residual blocks by the paper's names, ``conv2_1`` first."""
    return {name: block for stage in blocks_by_stage(model).values() for name, block in stage.items()}


def named_blocks(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """The blocks with these names, in the given order; all blocks if ``names`` is None.

    Raises:
        ValueError: for an unknown name.
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
    """For each named block, the module whose output the paper calls ``conv4-1-relu``; all blocks if ``names`` is None.

    This is the block itself if it ends in a ReLU. A pre-activation block ends in the sum; its ReLU is the first one of
    the next block, or the network's last.

    Raises:
        ValueError: for an unknown name.
    """
    wanted = named_blocks(model, names)
    if not getattr(model, "preactivated", False):
        return wanted
    every = blocks(model)
    _, *following = every.values()
    next_module = dict(zip(every, [*following, model], strict=True))
    return {name: next_module[name].relu for name in wanted}  # type: ignore[misc]


def slot(block: nn.Module) -> str:
    """The name of the block's attribute for GE.

    Raises:
        ValueError: for a block without a slot.
    """
    for name in ("ge", "se"):
        if hasattr(block, name):
            return name
    raise ValueError(f"{type(block).__name__} has no slot for Gather-Excite (an attribute 'ge', or timm's 'se')")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run in eval mode and without ``torch.compile``, since compiled code ignores hooks that are added later."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes.items():  # one by one: some may be frozen
            module.training = training


@contextmanager
def forward_hooks(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``see(name, output)`` after each forward pass of the named modules."""
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: see(name, output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def block_outputs(model: nn.Module, x: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Run the model on images ``[N, C, H, W]`` and return the outputs of the named blocks; of all if ``names`` is None.

    Raises:
        ValueError: for an unknown name.
    """
    outputs: dict[str, Tensor] = {}
    with forward_hooks(named_blocks(model, names), outputs.__setitem__), torch.compiler.set_stance("force_eager"):
        model(x)
    return outputs


def slot_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, torch.Size]:
    """The shape ``[1, C, H, W]`` at each block's slot for one image (C, H, W), found on the meta device."""
    shapes: dict[str, torch.Size] = {}
    empty = [block for block in blocks(model).values() if getattr(block, slot(block)) is None]
    try:
        for block in empty:
            setattr(block, slot(block), nn.Identity())
        slots = {name: getattr(block, slot(block)) for name, block in blocks(model).items()}
        with forward_hooks(slots, lambda name, output: shapes.__setitem__(name, output.shape)):
            dry_run(model, image_shape)
    finally:
        for block in empty:
            setattr(block, slot(block), None)
    return shapes


def dry_run(model: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """A forward pass in eval mode for one image (C, H, W) on the meta device: shapes, without computation.

    The model's parameters and buffers do not change.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None)
    with eval_mode(model), torch.no_grad():
        return torch.func.functional_call(model, meta, torch.empty(1, *image_shape, dtype=dtype, device="meta"))
