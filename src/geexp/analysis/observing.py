"""Look at what parts of a network put out for images, and leave the network as it was."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from geexp.analysis import over_ranks

Batches = Iterable[tuple[Tensor, Tensor]]  # images [N, C, H, W], normalised, and labels [N]

# How many values of an output are shown at once: what is computed of them in float64 then takes some ten megabytes,
# however large the batch, and stays in the processor's cache.
_AT_ONCE = 1 << 19


def observe(
    model: nn.Module,
    batches: Batches,
    parts: Mapping[str, nn.Module],
    see: Callable[[str, Tensor, Tensor], None],
    *,
    num_classes: int,
) -> Tensor:
    """Run the network and call ``see(name, output, labels)`` with what each of ``parts`` puts out for the images.

    ``output`` is ``[n, …]`` with its ``labels`` ``[n]`` for n images of a batch, few enough to be computed with in
    float64. It is to be read at once: what follows in the network may overwrite it.

    Returns:
        Images per class over all ranks, ``[num_classes]`` int64.

    Raises:
        ValueError: for a label out of range, and if there were no images on any rank.
    """
    first = next(model.parameters())
    images_of = torch.zeros(num_classes, dtype=torch.int64, device=first.device)
    with in_eval_mode(model), torch.no_grad():
        for images, labels in batches:
            _check(labels, num_classes)
            labels = labels.to(first.device)
            images_of += torch.bincount(labels, minlength=num_classes)
            with _shown(parts, see, labels):
                model(images.to(first))
    images_of = over_ranks.total(images_of)
    if not images_of.any():
        raise ValueError("there were no images in the batches")
    return images_of


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and eager code, whose hooks are run even if the model was compiled before they were added."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes.items():  # one by one: some may have been frozen
            module.training = training


@contextmanager
def _shown(
    parts: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None], labels: Tensor
) -> Iterator[None]:
    def show(name: str, output: Tensor) -> None:
        n = max(1, _AT_ONCE // output[0].numel())
        for some, theirs in zip(output.split(n), labels.split(n), strict=True):
            see(name, some, theirs)

    handles = [
        part.register_forward_hook(lambda _m, _i, output, name=name: show(name, output)) for name, part in parts.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(labels: Tensor, num_classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"label {int(wrong[0])}: with num_classes={num_classes} labels go from 0 to {num_classes - 1}")
