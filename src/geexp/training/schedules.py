"""The learning rate as a pure function of the position in training; no state to save or to lose."""

import math
from bisect import bisect_right

from geexp.config.schema import ScheduleConfig


def lr_factor(schedule: ScheduleConfig, epoch: float) -> float:
    """What the base learning rate is multiplied by at ``epoch`` (a fraction: 1.5 is the middle of the second epoch).

    Rises linearly during the warm-up; then ``steps`` multiplies by ``factor`` at every milestone passed, and
    ``cosine`` falls to zero at ``schedule.epochs``.
    """
    if epoch < schedule.warmup_epochs:
        return epoch / schedule.warmup_epochs
    if schedule.kind == "steps":
        return schedule.factor ** bisect_right(schedule.milestones, epoch)
    done = (epoch - schedule.warmup_epochs) / (schedule.epochs - schedule.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
