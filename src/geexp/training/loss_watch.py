"""Has the loss, or have the weights, become something else than numbers?"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


class LossWatch:
    """The first step with a loss that is not finite, found on the device of the loss, without waiting for it."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def add(self, loss: Tensor, step: int) -> None:
        if self._first is None:
            self._first = torch.zeros((), dtype=torch.int64, device=loss.device)
        broken = ~torch.isfinite(loss) & (self._first == 0)
        self._first = torch.where(broken, step, self._first)

    def first(self) -> int:
        """Counted from 1; 0 if there is none."""
        return 0 if self._first is None else int(self._first)


def is_finite(network: nn.Module) -> bool:
    """Whether all weights and statistics are; a step can break them whose own loss was a number."""
    values = [value for value in network.state_dict().values() if value.is_floating_point()]
    return math.isfinite(get_total_norm(values, math.inf))
