"""The learning rate, a pure function of the position in training and the number of reductions at plateaus."""

import math
from bisect import bisect_right
from typing import Any

from geexp.config.errors import ConfigError, DivergedError
from geexp.config.protocol import stretched
from geexp.config.schema import ScheduleConfig
from geexp.registry import bound


def lr_factor(schedule: ScheduleConfig, position: float, reductions: int = 0) -> float:
    """The factor of the base learning rate at ``position``.

    The position is in the schedule's unit: iterations, or epochs (1.5 is the middle of the second). During warm-up the
    factor is ``warmup_factor``, or rises linearly from zero. After that it is given by ``schedule.kind``: ``steps``
    (lowered at each milestone), ``cosine`` (half a wave, to zero at the end) or ``plateau`` (lowered ``reductions``
    times so far); or by a custom ``schedule._target_``.

    Raises:
        ValueError: for an unknown kind.
        ConfigError: if a custom function fails or does not return a finite number >= 0.
    """
    if position < schedule.warmup:
        return position / schedule.warmup if schedule.warmup_factor is None else schedule.warmup_factor
    length = schedule.epochs if schedule.iterations is None else schedule.iterations
    assert length is not None  # one of the two is set
    if schedule._target_ is not None:
        return _user_factor(schedule, min(position / length, 1.0))
    match schedule.kind:
        case "steps":
            return schedule.factor ** bisect_right(schedule.milestones, position)
        case "cosine":
            done = (position - schedule.warmup) / (length - schedule.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        case "plateau":
            return schedule.factor**reductions
    raise ValueError(f"schedule.kind={schedule.kind}: must be steps, cosine or plateau")


def require_schedule(schedule: ScheduleConfig) -> None:
    """Evaluate a custom schedule at its start, middle and end, so that errors show before training starts.

    Raises:
        ConfigError: for a wrong import path, wrong arguments, or a value that is not a finite number >= 0.
    """
    if schedule._target_ is not None:
        for progress in (0.0, 0.5, 1.0):
            _user_factor(schedule, progress)


def _user_factor(schedule: ScheduleConfig, progress: float) -> float:
    """Call the custom schedule as ``target(progress, **arguments)``; ``progress`` is the position from 0 to 1.

    The function must be pure; otherwise a resumed run would differ.
    """
    try:
        function = bound(str(schedule._target_), schedule.arguments, after=1)
    except ValueError as error:
        raise ConfigError(f"schedule._target_={error}.") from error
    value = function(progress)
    try:
        factor = float(value)
    except (TypeError, ValueError):
        factor = math.nan
    if not 0 <= factor < math.inf:
        raise ConfigError(
            f"schedule._target_={schedule._target_}: returned {value!r} at progress={progress:g}; it must return the "
            "factor of optim.lr, a finite number of at least 0."
        )
    return factor


class Plateau:
    """Counts plateaus of a value that should decrease.

    The learning rate is lowered at the first ``reductions`` plateaus; training ends at the next one. As in torch's
    ``ReduceLROnPlateau``, an epoch improves if its value is below ``(1 - threshold)`` times the best one, and a plateau
    is more than ``patience`` epochs in a row without improvement. Source: the paper's training on ImageNet; it does not
    state the monitored value, the patience or the threshold.
    """

    def __init__(self, *, patience: int, threshold: float, reductions: int) -> None:
        self.patience, self.threshold, self.most = patience, threshold, reductions
        self.best: float | None = None
        self.bad_epochs = 0
        self.reductions = 0
        self.finished = False

    def observe(self, value: float) -> None:
        """Update with the value of a finished epoch.

        Raises:
            DivergedError: if it is not finite.
        """
        if not math.isfinite(value):
            raise DivergedError(
                f"the value that the schedule monitors is {value}: the run has diverged. "
                "Try a lower optim.lr or a warm-up."
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
    """The learning rate during training: a schedule and the state of its plateau detection."""

    def __init__(self, schedule: ScheduleConfig) -> None:
        self.schedule = stretched(schedule)
        self.plateau = Plateau(
            patience=self.schedule.patience, threshold=schedule.threshold, reductions=schedule.reductions
        )

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of the base learning rate after ``step`` finished steps."""
        position = step / steps_per_epoch if self.schedule.iterations is None else step
        return lr_factor(self.schedule, position, self.plateau.reductions)

    def observe(self, metrics: dict[str, float]) -> None:
        """Update with the metrics of a finished epoch, reduced over all ranks so that every rank decides alike."""
        if self.schedule.kind == "plateau":
            self.plateau.observe(metrics[self.schedule.monitor])

    def over(self, step: int) -> bool:
        """Whether the schedule ends training after ``step`` finished steps, before the last epoch."""
        return self.plateau.finished or (self.schedule.iterations is not None and step >= self.schedule.iterations)

    def state_dict(self) -> dict[str, Any]:
        return self.plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.plateau.load_state_dict(state)
