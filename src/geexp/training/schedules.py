"""The learning rate: a pure function of the position in training and of how often it was lowered at a plateau."""

import math
from bisect import bisect_right
from typing import Any

from geexp.config.errors import DivergedError
from geexp.config.protocol import stretched
from geexp.config.schema import ScheduleConfig
from geexp.registry import locate


def lr_factor(schedule: ScheduleConfig, position: float, reductions: int = 0) -> float:
    """What the base learning rate is multiplied by at ``position``.

    The position is counted in the schedule's own unit: iterations, or epochs (1.5 is the middle of the second).
    During the warm-up the factor is ``warmup_factor``, or rises linearly from zero. Then ``steps`` multiplies by
    ``factor`` at every milestone passed, ``cosine`` falls to zero at the end, and ``plateau`` multiplies by ``factor``
    once for each of the ``reductions`` so far.
    """
    if position < schedule.warmup:
        return position / schedule.warmup if schedule.warmup_factor is None else schedule.warmup_factor
    if schedule.kind == "plateau":
        return schedule.factor**reductions
    if schedule.kind == "steps":
        return schedule.factor ** bisect_right(schedule.milestones, position)
    length = schedule.epochs if schedule.iterations is None else schedule.iterations
    assert length is not None  # one of the two is given
    if schedule._target_ is not None:
        return float(locate(schedule._target_)(position / length, **schedule.arguments))
    if schedule.kind != "cosine":
        raise ValueError(f"schedule.kind={schedule.kind}: must be steps, cosine or plateau")
    done = (position - schedule.warmup) / (length - schedule.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Plateau:
    """Counts the plateaus of a value that should fall: lowered ``reductions`` times, then finished at the next.

    An epoch is better if its value is below ``(1 - threshold)`` times the best one; after ``patience`` epochs that were
    not, the next such epoch is a plateau, and counting starts anew. These are the rules of torch's
    ``ReduceLROnPlateau``, to which the end of training is added. Source: the paper's training on ImageNet; which value,
    patience and threshold it does not say.
    """

    def __init__(self, *, patience: int, threshold: float, reductions: int) -> None:
        self.patience, self.threshold, self.most = patience, threshold, reductions
        self.best: float | None = None
        self.bad_epochs = 0
        self.reductions = 0
        self.finished = False

    def observe(self, value: float) -> None:
        """One epoch's value.

        Raises:
            DivergedError: if it is not finite: that would pass for an epoch that was not better.
        """
        if not math.isfinite(value):
            raise DivergedError(
                f"the value that the schedule watches is {value}: the run has diverged. "
                "Try a lower optim.lr, or a warm-up."
            )
        if self.best is None or value < self.best * (1 - self.threshold):
            self.best, self.bad_epochs = value, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.bad_epochs = 0
            if self.reductions == self.most:
                self.finished = True
            else:
                self.reductions += 1

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("best", "bad_epochs", "reductions", "finished")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)


class LearningRate:
    """A schedule in use: the factor at a step, what it learns from an epoch's metrics, and when it is over."""

    def __init__(self, schedule: ScheduleConfig) -> None:
        self.schedule = stretched(schedule)
        self.plateau = Plateau(
            patience=self.schedule.patience, threshold=schedule.threshold, reductions=schedule.reductions
        )

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """For the step that follows ``step`` finished ones."""
        position = step / steps_per_epoch if self.schedule.iterations is None else step
        return lr_factor(self.schedule, position, self.plateau.reductions)

    def observe(self, metrics: dict[str, float]) -> None:
        """The metrics of a finished epoch, over all ranks, so that every rank decides alike."""
        if self.schedule.kind == "plateau":
            self.plateau.observe(metrics[self.schedule.monitor])

    def over(self, step: int) -> bool:
        """Whether training ends after ``step`` finished steps, whatever the number of epochs."""
        return self.plateau.finished or (self.schedule.iterations is not None and step >= self.schedule.iterations)

    def state_dict(self) -> dict[str, Any]:
        return self.plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.plateau.load_state_dict(state)
