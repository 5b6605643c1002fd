"""Top-1 and top-5 errors as integer counts: exact, whatever the batches, and without a host sync per step."""

import torch
from torch import Tensor, nn


class ErrorCount(nn.Module):
    """Adds up images, top-1 errors, top-5 errors and the loss of the batches it is shown.

    With fewer than five classes, top-5 counts the classes there are.
    """

    counts: Tensor
    loss: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int64), persistent=False)
        self.register_buffer("loss", torch.zeros((), dtype=torch.float32), persistent=False)

    def reset(self) -> None:
        self.counts.zero_()
        self.loss.zero_()

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """``logits`` [N, classes], ``labels`` [N], ``loss`` the batch's mean."""
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hit = best == labels[:, None]
        self.counts[0] += len(labels)
        self.counts[1] += (~hit[:, 0]).sum()
        self.counts[2] += (~hit.any(dim=1)).sum()
        self.loss += loss.float() * len(labels)

    def metrics(self) -> dict[str, float]:
        """``loss``, ``top1_error`` and ``top5_error`` (percent), and the counts they were computed from."""
        images, top1, top5 = self.counts.tolist()
        if images == 0:
            return {}
        return {
            "loss": self.loss.item() / images,
            "top1_error": 100 * top1 / images,
            "top5_error": 100 * top5 / images,
            "top1_wrong": top1,
            "top5_wrong": top5,
            "images": images,
        }
