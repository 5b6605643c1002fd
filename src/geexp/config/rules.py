"""What a composed configuration must fulfil beyond keys and types. Every rule raises ``ConfigError``."""

import math
from collections.abc import Collection

from geexp.config.catalog import BACKBONES, VARIANTS
from geexp.config.errors import ConfigError, bad_value
from geexp.config.schema import (
    ComplexityConfig,
    DataConfig,
    EvaluateConfig,
    GatherExciteConfig,
    LoggerConfig,
    ModelConfig,
    OptimConfig,
    ReportConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
DATASETS = ("fashion_mnist_mini", "fashion_mnist", "cifar10", "cifar100", "imagenet")


def check_train(config: TrainConfig) -> None:
    check_model(config.model)
    check_ge(config.ge, config.model)
    check_data(config.data)
    check_choice("feed.name", config.feed.name, ("reference",))
    check_at_least("feed.workers", config.feed.workers, 0)
    check_schedule(config.schedule)
    check_optim(config.optim)
    check_trainer(config.trainer)
    check_logger(config.logger)
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed={config.seed}: must be from 0 to 4294967295.")
    if not config.outputs:
        raise ConfigError("outputs is empty: say in which folder the runs go, as in outputs=outputs.")
    for name, callback in config.callbacks.items():
        if callback is not None and not (isinstance(callback, dict) and "_target_" in callback):
            raise ConfigError(f"callbacks.{name}={callback}: must be null, or have a _target_ that makes a callback.")
    if config.schedule.kind == "cosine" and config.trainer.max_epochs > config.schedule.epochs:
        raise ConfigError(
            f"trainer.max_epochs={config.trainer.max_epochs}: the learning rate of schedule={config.schedule.name} is "
            f"zero after {config.schedule.epochs} epochs. For a longer run set schedule.epochs."
        )
    if config.resume not in (True, False, "auto"):
        raise bad_value("resume", config.resume, ("auto", "true", "false"))
    if config.force and config.resume is True:
        raise ConfigError("force=true starts the run over and resume=true goes on with it: choose one of the two.")


def check_complexity(config: ComplexityConfig) -> None:
    check_model(config.model)
    check_ge(config.ge, config.model)
    if config.table is not None:
        check_choice("table", config.table, (1, 2, 3, 4))
        for key, usual in (("image_size", None), ("num_classes", None), ("in_channels", 3)):
            if getattr(config, key) != usual:
                raise ConfigError(
                    f"{key}={getattr(config, key)}: a table has its own networks and setting; leave it out."
                )
    check_choice("format", config.format, ("text", "json"))
    for key in ("image_size", "num_classes"):
        if getattr(config, key) is not None:
            check_at_least(key, getattr(config, key), 1)
    check_at_least("in_channels", config.in_channels, 1)


def check_evaluate(config: EvaluateConfig) -> None:
    if bool(config.run) == bool(config.checkpoint):
        raise ConfigError("give one of the two: run=<a run's folder>, or checkpoint=<a .ckpt file>.")
    check_choice("which", config.which, ("best", "last"))
    check_choice("accelerator", config.accelerator, ("auto", "cpu", "gpu"))
    check_at_least("workers", config.workers, 0)
    check_choice("format", config.format, ("text", "json"))


def check_report(config: ReportConfig) -> None:
    check_choice("format", config.format, ("text", "json"))


def check_model(model: ModelConfig) -> None:
    check_choice("model.name", model.name, BACKBONES)
    check_choice("model.init", model.init, ("paper", "torch"))
    if model.stride_in is not None:
        check_choice("model.stride_in", model.stride_in, ("1x1", "3x3"))
        if BACKBONES[model.name].module != "geexp.backbones.resnet":
            raise ConfigError(f"model.stride_in={model.stride_in}: {model.name} has no such choice; leave it null.")
    if not 0 < model.bn_momentum <= 1:
        raise ConfigError(f"model.bn_momentum={model.bn_momentum}: must be above 0 and at most 1; the paper's is 0.05.")


def check_ge(ge: GatherExciteConfig, model: ModelConfig) -> None:
    check_choice("ge.variant", ge.variant, ("none", *VARIANTS))
    extent = ge.extent
    if extent != "global" and not (isinstance(extent, int) and extent >= 2 and extent.bit_count() == 1):
        raise bad_value("ge.extent", extent, (2, 4, 8, "global"), hint="Any power of two from 2 on will do.")
    check_choice("ge.pool", ge.pool, ("avg", "max"))
    if ge.pool == "max" and ge.variant in ("theta", "theta_plus"):
        raise ConfigError(f"ge.pool=max: {ge.variant} gathers by convolution; only theta_minus and se pool.")
    check_at_least("ge.reduction", ge.reduction, 1)
    if ge.stages is not None:
        if not ge.stages:
            raise ConfigError("ge.stages=[]: no stage would hold GE; for the plain backbone use ge=none.")
        if len(set(ge.stages)) < len(ge.stages):
            raise ConfigError(f"ge.stages={ge.stages}: names a stage twice.")
        for stage in ge.stages:
            if stage not in BACKBONES[model.name].stages:
                allowed = ", ".join(map(str, BACKBONES[model.name].stages))
                raise ConfigError(
                    f"ge.stages={ge.stages}: {model.name} has no stage {stage}. Allowed: {allowed}, "
                    "or null for all of them."
                )


def check_data(data: DataConfig) -> None:
    check_choice("data.name", data.name, DATASETS)
    for key in ("num_classes", "image_size", "channels"):
        check_at_least(f"data.{key}", getattr(data, key), 1)
    for key in ("mean", "std"):
        values = getattr(data, key)
        if len(values) != data.channels:
            raise ConfigError(f"data.{key}={values}: one number per channel is needed, data.channels={data.channels}.")
    if not all(0 < value < math.inf for value in data.std) or not all(map(math.isfinite, data.mean)):
        raise ConfigError(f"data.mean={data.mean}, data.std={data.std}: must be finite, and std above 0.")
    if data.augmentation.crop is not None:
        check_choice("data.augmentation.crop", data.augmentation.crop, ("pad", "resized"))
    if data.evaluation_crop is not None:
        check_choice("data.evaluation_crop", data.evaluation_crop, ("centre",))
    check_at_least("data.augmentation.pad", data.augmentation.pad, 0)


def check_schedule(schedule: ScheduleConfig) -> None:
    check_choice("schedule.kind", schedule.kind, ("steps", "cosine"))
    check_at_least("schedule.epochs", schedule.epochs, 1)
    check_at_least("schedule.warmup_epochs", schedule.warmup_epochs, 0)
    if schedule.warmup_epochs >= schedule.epochs:
        raise ConfigError(
            f"schedule.warmup_epochs={schedule.warmup_epochs}: must be less than schedule.epochs={schedule.epochs}."
        )
    if schedule.kind == "cosine" and schedule.milestones:
        raise ConfigError(f"schedule.milestones={schedule.milestones}: only schedule.kind=steps has milestones.")
    if schedule.milestones != sorted(set(schedule.milestones)) or any(m < 1 for m in schedule.milestones):
        raise ConfigError(f"schedule.milestones={schedule.milestones}: must be epochs from 1 on, in rising order.")
    if not 0 < schedule.factor < math.inf:
        raise ConfigError(f"schedule.factor={schedule.factor}: must be above 0 and finite.")


def check_optim(optim: OptimConfig) -> None:
    for key in ("lr", "bias_lr_factor"):
        if not 0 < getattr(optim, key) < math.inf:
            raise ConfigError(f"optim.{key}={getattr(optim, key)}: must be above 0 and finite.")
    if not 0 <= optim.momentum < 1:
        raise ConfigError(f"optim.momentum={optim.momentum}: must be from 0 to below 1.")
    if optim.nesterov and optim.momentum == 0:
        raise ConfigError("optim.nesterov=true needs optim.momentum above 0.")
    check_at_least("optim.weight_decay", optim.weight_decay, 0)
    check_at_least("optim.batch_size", optim.batch_size, 2)  # batch normalisation needs two


def check_trainer(trainer: TrainerConfig) -> None:
    check_choice("trainer.accelerator", trainer.accelerator, ("auto", "cpu", "gpu", "mps"))
    check_choice("trainer.precision", trainer.precision, PRECISIONS)
    check_at_least("trainer.max_epochs", trainer.max_epochs, 1)
    if trainer.devices != 1:
        raise ConfigError(
            f"trainer.devices={trainer.devices}: this version trains on one device; several come with the launcher "
            "that gives each job a process tree of its own. Use trainer.devices=1."
        )
    for key in ("limit_train_batches", "limit_val_batches", "overfit_batches"):
        value = getattr(trainer, key)
        off = value is None or (key == "overfit_batches" and value == 0)
        if not off and (value <= 0 or (isinstance(value, float) and value > 1)):
            raise ConfigError(f"trainer.{key}={value}: must be a number of batches, or a share above 0.0 up to 1.0.")
    if trainer.profiler is not None:
        check_choice("trainer.profiler", trainer.profiler, ("simple", "advanced", "pytorch"))


def check_logger(logger: LoggerConfig) -> None:
    check_choice("logger.name", logger.name, ("none", "csv", "wandb"))
    check_choice("logger.mode", logger.mode, ("auto", "online", "offline"))


def check_choice(key: str, value: object, allowed: Collection[object]) -> None:
    if value not in allowed:
        raise bad_value(key, value, allowed)


def check_at_least(key: str, value: float, least: float) -> None:
    if not least <= value < math.inf:  # written so that NaN fails
        raise ConfigError(f"{key}={value}: must be at least {least} and finite.")
