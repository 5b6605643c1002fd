"""Top-1 and top-5 errors as integer counts: exact, whatever the batches, and without a host sync per step."""

import torch
import torch.distributed as dist
from torch import Tensor


class ErrorCount:
    """Adds up images, top-1 errors, top-5 errors and the loss of the batches it is shown.

    With fewer than five classes, top-5 counts the classes there are. The sums live on the device of the logits, in
    types of their own: they are no part of the network, whose precision may be low.

    Args:
        confusion: also count which class was taken for which, in ``confusion``.
    """

    def __init__(self, *, confusion: bool = False) -> None:
        self.counts_confusion = confusion
        self.reset()

    def reset(self) -> None:
        self._pairs: list[Tensor] = []
        self._counts: Tensor | None = None
        self._loss: Tensor | None = None
        self._before = [0.0, 0.0, 0.0, 0.0]

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """``logits`` [N, classes], ``labels`` [N], ``loss`` the batch's mean."""
        classes = logits.shape[1]
        top = logits.topk(min(5, classes), dim=1).indices
        hit = top == labels[:, None]
        if self.counts_confusion:
            self._pairs.append(labels * classes + top[:, 0])
        images = torch.tensor(len(labels), device=logits.device)
        counts = torch.stack([images, (~hit[:, 0]).sum(), (~hit.any(dim=1)).sum()])
        wide = torch.float32 if logits.device.type == "mps" else torch.float64  # mps has no float64
        total = loss.detach().to(wide) * len(labels)
        self._counts = counts if self._counts is None else self._counts + counts
        self._loss = total if self._loss is None else self._loss + total

    def totals(self, device: torch.device) -> list[float]:
        """Images, top-1 and top-5 errors and the summed loss over all ranks; every rank must ask, on its ``device``."""
        sums = torch.tensor(self._before, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        if self._counts is not None and self._loss is not None:
            sums[:3] += self._counts.to(sums)  # float64 counts exactly up to 2^53
            sums[3] += self._loss.to(sums)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        return sums.tolist()

    def restore(self, totals: list[float]) -> None:
        """Go on from what ``totals`` gave; on one rank only, and before it is known on which device."""
        self._before = list(totals)

    def metrics(self, device: torch.device) -> dict[str, float]:
        """``loss``, ``top1_error`` and ``top5_error`` (percent), and the counts they were computed from; see totals."""
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
        """Images by class (rows) and by the class they were taken for, int64 on the CPU, of all ranks, which must all
        ask; None if no images were counted. Its sums off the diagonal are the top-1 errors."""
        pairs = torch.cat(self._pairs) if self._pairs else torch.empty(0, dtype=torch.int64)
        counts = torch.bincount(pairs.cpu(), minlength=classes * classes)
        if dist.is_available() and dist.is_initialized():
            counts = counts.to(device)
            dist.all_reduce(counts)
            counts = counts.cpu()
        return counts.view(classes, classes) if counts.any() else None
