"""Quantities derived from a configuration: schedule lengths, learning rate, batch sizes. No torch."""

from dataclasses import replace

from geexp.config.errors import ConfigError
from geexp.config.schema import OptimConfig, ScheduleConfig, TrainConfig


def stretched(schedule: ScheduleConfig) -> ScheduleConfig:
    """The schedule with all lengths multiplied by ``stretch``, to at least 1, and ``stretch`` set to 1."""

    def long(length: int) -> int:
        return max(1, round(length * schedule.stretch))

    return replace(
        schedule,
        stretch=1.0,
        epochs=None if schedule.epochs is None else long(schedule.epochs),
        iterations=None if schedule.iterations is None else long(schedule.iterations),
        warmup=round(schedule.warmup * schedule.stretch, 9),  # 400 x 0.07 is slightly above 28, which would add a step
        milestones=[long(milestone) for milestone in schedule.milestones],
        patience=max(1, round(schedule.patience * schedule.stretch)) if schedule.patience else 0,
    )


def same_start(ours: ScheduleConfig, theirs: ScheduleConfig, end: int) -> bool:
    """Whether two schedules give the same learning rates up to ``end``, in epochs or in the iterations that they count.

    Schedules over their whole length (cosine and custom ones) must have the same length.
    """

    def start(schedule: ScheduleConfig) -> tuple[object, ...]:
        whole = stretched(schedule)
        warmup = (whole.warmup, whole.warmup_factor if whole.warmup else None)
        kind: tuple[object, ...] = (whole.epochs, whole.iterations, whole._target_, whole.arguments)
        if whole.kind == "steps":
            kind = (whole.factor, [milestone for milestone in whole.milestones if milestone < end])
        elif whole.kind == "plateau":
            kind = (whole.factor, whole.monitor, whole.patience, whole.threshold, whole.reductions)
        return whole.kind, whole.iterations is None, warmup, kind

    return start(ours) == start(theirs)


def planned_epochs(config: TrainConfig) -> int | None:
    """The maximal number of epochs of a run; None if its schedule counts iterations and no limit is set."""
    return stretched(config.schedule).epochs if config.trainer.max_epochs is None else config.trainer.max_epochs


def base_rate(optim: OptimConfig) -> float:
    """The base learning rate: ``optim.lr``, scaled by batch_size / lr_for_batch if ``optim.lr_for_batch`` is set."""
    # In this order, equal batch sizes leave the rate unchanged; 0.1 x 96 / 96 would not.
    return optim.lr if optim.lr_for_batch is None else optim.lr * (optim.batch_size / optim.lr_for_batch)


def device_batch(config: TrainConfig) -> int:
    """Images in one forward pass of one device.

    Raises:
        ConfigError: if the global batch is not divisible by devices x accumulated batches.
    """
    return share_of_batch(
        config.optim.batch_size, config.trainer.devices * config.trainer.nodes, config.trainer.accumulate
    )


def share_of_batch(batch_size: int, devices: int, accumulate: int) -> int:
    """``device_batch`` from plain numbers."""
    share, rest = divmod(batch_size, devices * accumulate)
    if rest or not share:
        raise ConfigError(
            f"optim.batch_size={batch_size} is the global batch size and is not divisible by {devices} "
            f"{'device' if devices == 1 else 'devices'} with trainer.accumulate={accumulate}. "
            f"The nearest that is: {max(1, round(batch_size / (devices * accumulate))) * devices * accumulate}."
        )
    return share


def batchnorm_batch(config: TrainConfig) -> int:
    """The number of images that BN normalises over: those of one device, or of all with synchronised BN."""
    share = device_batch(config)
    return share * config.trainer.devices * config.trainer.nodes if config.trainer.sync_batchnorm else share
