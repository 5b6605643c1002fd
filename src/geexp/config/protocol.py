"""What follows from a configuration by arithmetic: lengths, rates and batches. No torch."""

from dataclasses import replace

from geexp.config.errors import ConfigError
from geexp.config.schema import OptimConfig, ScheduleConfig, TrainConfig


def stretched(schedule: ScheduleConfig) -> ScheduleConfig:
    """The schedule with all its lengths multiplied by its ``stretch``, which is 1 then; none below one."""

    def long(length: int) -> int:
        return max(1, round(length * schedule.stretch))

    return replace(
        schedule,
        stretch=1.0,
        epochs=None if schedule.epochs is None else long(schedule.epochs),
        iterations=None if schedule.iterations is None else long(schedule.iterations),
        warmup=round(schedule.warmup * schedule.stretch, 9),  # 400 x 0.07 is a hair above 28: one step more
        milestones=[long(milestone) for milestone in schedule.milestones],
        patience=max(1, round(schedule.patience * schedule.stretch)) if schedule.patience else 0,
    )


def planned_epochs(config: TrainConfig) -> int | None:
    """After how many epochs a run ends at the latest; None if only its schedule's iterations end it."""
    return stretched(config.schedule).epochs if config.trainer.max_epochs is None else config.trainer.max_epochs


def base_rate(optim: OptimConfig) -> float:
    """``optim.lr``, scaled linearly from ``optim.lr_for_batch`` to ``optim.batch_size`` if that was asked for."""
    # In this order: equal batches give the rate itself, 0.1 x 96 / 96 would not.
    return optim.lr if optim.lr_for_batch is None else optim.lr * (optim.batch_size / optim.lr_for_batch)


def device_batch(config: TrainConfig) -> int:
    """Images in one forward pass of one device.

    Raises:
        ConfigError: if the global batch does not divide among the devices and the batches that make one step.
    """
    return share_of_batch(
        config.optim.batch_size, config.trainer.devices * config.trainer.nodes, config.trainer.accumulate
    )


def share_of_batch(batch_size: int, devices: int, accumulate: int) -> int:
    """See ``device_batch``; by numbers."""
    share, rest = divmod(batch_size, devices * accumulate)
    if rest or not share:
        raise ConfigError(
            f"optim.batch_size={batch_size} is the batch of all devices together and does not divide among {devices} "
            f"{'device' if devices == 1 else 'devices'} with trainer.accumulate={accumulate}. "
            f"The nearest that does is {max(1, round(batch_size / (devices * accumulate))) * devices * accumulate}."
        )
    return share


def batchnorm_batch(config: TrainConfig) -> int:
    """How many images one batch normalisation sees at once: those of a device, or synchronised those of all."""
    share = device_batch(config)
    return share * config.trainer.devices * config.trainer.nodes if config.trainer.sync_batchnorm else share
