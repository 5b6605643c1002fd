"""Exact error counts and checks for finite loss and weights, computed on the device without synchronisation."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


class ErrorCount:
    """Top-1 and top-5 errors as integer counts, and the summed loss; counts do not depend on the batch size.

    With fewer than five classes, top-5 covers all of them. Counts are int64 and the loss float64 (float32 on mps),
    whatever the precision of the network. ``confusion=True`` also stores the predictions for ``confusion()``.
    """

    def __init__(self, *, confusion: bool = False) -> None:
        self.counts_confusion = confusion
        self.reset()

    def reset(self) -> None:
        self._pairs: list[Tensor] = []
        self._images = 0
        self._counts: Tensor | None = None
        self._loss: Tensor | None = None
        self._before = [0.0, 0.0, 0.0, 0.0]

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch: ``logits`` [N, classes], ``labels`` [N], ``loss`` the mean over the batch."""
        classes = logits.shape[1]
        top = logits.topk(min(5, classes), dim=1).indices
        hit = top == labels[:, None]
        if self.counts_confusion:
            self._pairs.append(labels * classes + top[:, 0])
        counts = torch.stack([(~hit[:, 0]).sum(), (~hit.any(dim=1)).sum()])
        wide = torch.float32 if logits.device.type == "mps" else torch.float64  # mps has no float64
        total = loss.detach().to(wide) * len(labels)
        self._images += len(labels)
        self._counts = counts if self._counts is None else self._counts + counts
        self._loss = total if self._loss is None else self._loss + total

    def totals(self, device: torch.device) -> list[float]:
        """Images, top-1 errors, top-5 errors and summed loss over all ranks. Every rank must call it."""
        sums = torch.tensor(self._before, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        if self._counts is not None and self._loss is not None:
            sums[0] += self._images
            sums[1:3] += self._counts.to(sums)  # float64 counts exactly up to 2^53
            sums[3] += self._loss.to(sums)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        return sums.tolist()

    def restore(self, totals: list[float]) -> None:
        """Continue from a result of ``totals``. Call it on one rank only."""
        self._before = list(totals)

    def metrics(self, device: torch.device) -> dict[str, float]:
        """``loss``, ``top1_error`` and ``top5_error`` (percent) and their counts, over all ranks.

        Empty if no images were counted. Every rank must call it.
        """
        *counts, loss = self.totals(device)
        images, top1, top5 = map(int, counts)
        if not images:
            return {}
        return {
            "loss": loss / images,
            "top1_error": 100 * top1 / images,
            "top5_error": 100 * top5 / images,
            "top1_wrong": top1,
            "top5_wrong": top5,
            "images": images,
        }

    def confusion(self, device: torch.device, classes: int) -> Tensor | None:
        """The confusion matrix over all ranks, ``[classes, classes]``, int64 on the CPU: rows true, columns predicted.

        None if no images were counted. Every rank must call it.
        """
        pairs = torch.cat(self._pairs) if self._pairs else torch.empty(0, dtype=torch.int64)
        counts = torch.bincount(pairs.cpu(), minlength=classes * classes)
        if dist.is_available() and dist.is_initialized():
            counts = counts.to(device)
            dist.all_reduce(counts)
            counts = counts.cpu()
        return counts.view(classes, classes) if counts.any() else None


class NonFiniteWatch:
    """Records, on the device of the loss, the first step with a NaN or infinite loss."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def add(self, loss: Tensor, step: int) -> None:
        if self._first is None:
            self._first = torch.zeros((), dtype=torch.int64, device=loss.device)
        broken = ~torch.isfinite(loss) & (self._first == 0)
        self._first = torch.where(broken, step, self._first)

    def first(self) -> int:
        """The number of that step, from 1; 0 if there is none."""
        return 0 if self._first is None else int(self._first)


def is_finite(network: nn.Module) -> bool:
    """Whether all weights and buffers are finite. A step with a finite loss can still overflow them."""
    values = [value for value in network.state_dict().values() if value.is_floating_point()]
    return math.isfinite(get_total_norm(values, math.inf))
