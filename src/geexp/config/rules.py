"""What a composed configuration must fulfil beyond keys and types. Every rule raises ``ConfigError``."""

import math
from collections.abc import Collection

from geexp.config.catalog import BACKBONES, DATASETS, DETECTION_SETS, IMPLEMENTATIONS, VARIANTS
from geexp.config.detection import check_detection, is_detection
from geexp.config.errors import ConfigError, bad_value
from geexp.config.protocol import batchnorm_batch, planned_epochs, stretched
from geexp.config.schema import (
    DataConfig,
    FeedConfig,
    GatherExciteConfig,
    LauncherConfig,
    LoggerConfig,
    ModelConfig,
    OptimConfig,
    RecipeConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
# torch.compile's; reduce-overhead replays CUDA graphs.
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
FEEDS = ("reference", "folder", "pack", "resident", "coco")
MONITORS = tuple(f"{split}/{name}" for split in ("val", "train") for name in ("loss", "top1_error", "top5_error"))
DECODERS = ("auto", "torchvision", "torchcodec", "simplejpeg", "pil")
# The data sets that a scale is made for; the others, smoke and a user's own, are for any.
SCALES = {"imagenet100": ("imagenet",), "imagenet10": ("imagenet",), "cifar_short": ("cifar10", "cifar100")}


def check_train(config: TrainConfig) -> None:
    check_scale(config.scale, config.data)
    check_model(config.model)
    check_ge(config.ge, config.model)
    check_detection(config)
    check_data(config.data)
    check_feed(config.feed, config.data)
    check_schedule(config.schedule)
    check_optim(config.optim)
    check_launcher(config.launcher)
    check_trainer(config.trainer)
    check_logger(config.logger)
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed={config.seed}: must be from 0 to 4294967295.")
    if not config.outputs:
        raise ConfigError("outputs is empty: say in which folder the runs go, as in outputs=outputs.")
    for name, callback in config.callbacks.items():
        if callback is not None and not (isinstance(callback, dict) and "_target_" in callback):
            raise ConfigError(f"callbacks.{name}={callback}: must be null, or have a _target_ that makes a callback.")
    epochs, planned = stretched(config.schedule).epochs, planned_epochs(config)
    if epochs is not None and planned is not None and planned > epochs:
        raise ConfigError(
            f"trainer.max_epochs={planned}: schedule={config.schedule.name} is over after {epochs} epochs. "
            "For a longer run set schedule.epochs."
        )
    # A detector's BN is frozen, or sees the many places of large maps; one image a device is usual.
    if batchnorm_batch(config) < 2 and not is_detection(config):
        raise ConfigError(
            f"optim.batch_size={config.optim.batch_size} leaves one image per device; batch normalisation needs two. "
            "Use fewer trainer.devices, a smaller trainer.accumulate, or trainer.sync_batchnorm=true."
        )
    if config.resume not in (True, False, "auto"):
        raise bad_value("resume", config.resume, ("auto", "true", "false"))
    if config.force and config.resume is True:
        raise ConfigError("force=true starts the run over and resume=true goes on with it: choose one of the two.")


def check_scale(scale: str | None, data: DataConfig) -> None:
    """Asked first: on another data set a scale breaks other rules too, whose messages would mislead."""
    made_for = SCALES.get(scale, ()) if scale is not None else ()
    if made_for and data.name not in made_for:
        others = [name for name, those in SCALES.items() if data.name in those]
        raise ConfigError(
            f"scale={scale}: is made for data={' or '.join(made_for)}, and the configuration says data={data.name}. "
            f"For that there is scale={' or '.join([*others, 'smoke'])}."
        )


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
    check_extent("ge.extent", ge.extent)
    check_choice("ge.pool", ge.pool, ("avg", "max"))
    if ge.pool == "max" and ge.variant in ("theta", "theta_plus"):
        raise ConfigError(f"ge.pool=max: {ge.variant} gathers by convolution; only theta_minus and se pool.")
    check_at_least("ge.reduction", ge.reduction, 1)
    check_choice("ge.implementation", ge.implementation, IMPLEMENTATIONS)
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
    augmentation = data.augmentation
    check_at_least("data.augmentation.pad", augmentation.pad, 0)
    if not 0 <= augmentation.rotation <= 180:
        raise ConfigError(f"data.augmentation.rotation={augmentation.rotation}: must be from 0 to 180 degrees.")
    if not 0 <= augmentation.jitter <= 255:
        raise ConfigError(f"data.augmentation.jitter={augmentation.jitter}: must be from 0 to 255 levels.")
    if data.keep_classes is not None:
        check_at_least("data.keep_classes", data.keep_classes, 2)
        if data.num_classes != data.keep_classes:
            raise ConfigError(
                f"data.num_classes={data.num_classes}: data.keep_classes={data.keep_classes} leaves another number. "
                f"Say data.num_classes={data.keep_classes}, or leave data.keep_classes out."
            )
    check_recipe(data.recipe)


def check_recipe(recipe: RecipeConfig) -> None:
    check_choice("recipe", recipe.name, ("original", "jpeg", "raw"))
    sides = {key: getattr(recipe, key) for key in ("max_side", "short_side") if getattr(recipe, key) is not None}
    for key, value in sides.items():
        check_at_least(f"data.recipe.{key}", value, 32)
    if recipe.name == "original" and sides:
        raise ConfigError(f"recipe=original keeps every file as it is: leave out data.recipe.{next(iter(sides))}.")
    if recipe.name != "original" and len(sides) != 1:
        raise ConfigError(
            f"recipe={recipe.name} shrinks images to data.recipe.max_side or to data.recipe.short_side pixels: give "
            "one of the two, and null for the other."
        )
    if (recipe.quality is None) == (recipe.name == "jpeg"):
        raise ConfigError(f"data.recipe.quality={recipe.quality}: recipe=jpeg needs one, the others have none.")
    if recipe.quality is not None and not 1 <= recipe.quality <= 100:
        raise ConfigError(f"data.recipe.quality={recipe.quality}: must be from 1 to 100.")


def check_feed(feed: FeedConfig, data: DataConfig) -> None:
    """A feed on its own, and whether it can feed this data set with this augmentation."""
    check_choice("feed.name", feed.name, FEEDS)
    check_choice("feed.engine", feed.engine, ("threads", "workers"))
    check_choice("feed.decode", feed.decode, DECODERS)
    check_choice("feed.on_error", feed.on_error, ("stop", "skip"))
    if feed.workers is not None:
        check_at_least("feed.workers", feed.workers, 0)
    if (feed.name == "coco") != (data.name in DETECTION_SETS):
        raise ConfigError(f"feed={feed.name}: cannot feed data={data.name}. Use feed={data.default_feed}.")
    others = f"Use feed={data.default_feed} or feed=reference."
    if feed.name == "reference" and feed.engine == "threads":
        raise ConfigError("feed.engine=threads: feed=reference draws from the one generator of torch; use workers.")
    if feed.name == "resident":
        if DATASETS[data.name]:
            raise ConfigError(f"feed=resident: the images of data={data.name} differ in size. {others}")
        if feed.workers:
            raise ConfigError(f"feed.workers={feed.workers}: feed=resident has no workers; leave it out.")
        if data.evaluation_crop is not None:
            raise ConfigError(f"data.evaluation_crop={data.evaluation_crop}: feed=resident does not resize. {others}")
    if feed.name in ("folder", "pack"):
        if not DATASETS[data.name]:
            raise ConfigError(f"feed={feed.name}: data={data.name} is no folder of image files. {others}")
        if data.channels != 3:
            raise ConfigError(f"data.channels={data.channels}: feed={feed.name} gives colour images, data.channels=3.")
        if data.evaluation_crop is None:
            raise ConfigError(f"data.evaluation_crop=null: feed={feed.name} needs data.evaluation_crop=centre.")
    possible = {"reference": ("pad", "resized", None), "resident": ("pad", None)}.get(feed.name, ("resized", None))
    if data.augmentation.crop not in possible:
        raise ConfigError(
            f"data.augmentation.crop={data.augmentation.crop}: not with feed={feed.name}. Choose another "
            "data/augmentation, or feed=reference."
        )
    if feed.name == "resident" and (data.augmentation.rotation or data.augmentation.jitter):
        raise ConfigError("data.augmentation.rotation and jitter: not with feed=resident; use feed=reference.")
    if data.recipe.name != "original" and feed.name != "pack":
        raise ConfigError(
            f"recipe={data.recipe.name}: images that were shrunk are read from a pack; say feed=pack, or "
            "recipe=original."
        )


def check_schedule(schedule: ScheduleConfig) -> None:
    check_choice("schedule.kind", schedule.kind, ("steps", "cosine", "plateau"))
    units = [unit for unit in ("epochs", "iterations") if getattr(schedule, unit) is not None]
    if len(units) != 1:
        raise ConfigError(
            f"schedule.epochs={schedule.epochs}, schedule.iterations={schedule.iterations}: give one of the two, and "
            "null for the other; warm-up and milestones are counted in it."
        )
    (unit,) = units
    length = getattr(schedule, unit)
    check_at_least(f"schedule.{unit}", length, 1)
    if not 0 < schedule.stretch <= 1000:
        raise ConfigError(f"schedule.stretch={schedule.stretch}: must be above 0 and at most 1000; 1 is the protocol.")
    check_at_least("schedule.warmup", schedule.warmup, 0)
    if schedule.warmup >= length:
        raise ConfigError(f"schedule.warmup={schedule.warmup}: must be less than schedule.{unit}={length}.")
    short = stretched(schedule)  # whose length is rounded to a whole number, and its warm-up is not
    if short.warmup >= getattr(short, unit):
        raise ConfigError(
            f"schedule.stretch={schedule.stretch}: leaves schedule.{unit}={getattr(short, unit)}, which a warm-up of "
            f"{short.warmup:g} fills. Set a shorter schedule.warmup, or another stretch."
        )
    if schedule.warmup_factor is not None and not 0 < schedule.warmup_factor < math.inf:
        raise ConfigError(
            f"schedule.warmup_factor={schedule.warmup_factor}: must be above 0 and finite, or null for a rise from "
            "zero."
        )
    if schedule.kind != "steps" and schedule.milestones:
        raise ConfigError(f"schedule.milestones={schedule.milestones}: only schedule.kind=steps has milestones.")
    if schedule.milestones != sorted(set(schedule.milestones)) or any(m < 1 for m in schedule.milestones):
        raise ConfigError(f"schedule.milestones={schedule.milestones}: must be {unit} from 1 on, in rising order.")
    if not 0 < schedule.factor < math.inf:
        raise ConfigError(f"schedule.factor={schedule.factor}: must be above 0 and finite.")
    if schedule.kind == "plateau":
        if unit != "epochs":
            raise ConfigError("schedule.iterations: a plateau is found after an epoch; give schedule.epochs instead.")
        if schedule.factor >= 1:
            raise ConfigError(f"schedule.factor={schedule.factor}: must be below 1, as a plateau lowers the rate.")
        check_choice("schedule.monitor", schedule.monitor, MONITORS)
        check_at_least("schedule.patience", schedule.patience, 0)
        check_at_least("schedule.reductions", schedule.reductions, 0)
        if not 0 <= schedule.threshold < 1:
            raise ConfigError(
                f"schedule.threshold={schedule.threshold}: must be from 0 to below 1, a share of the best value."
            )


def check_optim(optim: OptimConfig) -> None:
    if optim.clip_norm is not None and not 0 < optim.clip_norm < math.inf:
        raise ConfigError(
            f"optim.clip_norm={optim.clip_norm}: must be above 0, or null to leave gradients as they are."
        )
    for key in ("lr", "bias_lr_factor"):
        if not 0 < getattr(optim, key) < math.inf:
            raise ConfigError(f"optim.{key}={getattr(optim, key)}: must be above 0 and finite.")
    if optim.lr_for_batch is not None:
        check_at_least("optim.lr_for_batch", optim.lr_for_batch, 1)
    if not 0 <= optim.momentum < 1:
        raise ConfigError(f"optim.momentum={optim.momentum}: must be from 0 to below 1.")
    if optim.nesterov and optim.momentum == 0:
        raise ConfigError("optim.nesterov=true needs optim.momentum above 0.")
    check_at_least("optim.weight_decay", optim.weight_decay, 0)
    check_at_least("optim.batch_size", optim.batch_size, 2)  # batch normalisation needs two


def check_trainer(trainer: TrainerConfig) -> None:
    check_choice("trainer.accelerator", trainer.accelerator, ("auto", "cpu", "gpu", "mps"))
    check_choice("trainer.precision", trainer.precision, PRECISIONS)
    for key in ("devices", "nodes", "accumulate"):
        check_at_least(f"trainer.{key}", getattr(trainer, key), 1)
    if trainer.sync_batchnorm and trainer.accelerator == "cpu":
        raise ConfigError("trainer.sync_batchnorm=true: torch synchronises batch normalisation on GPUs only.")
    check_choice("trainer.compile_mode", trainer.compile_mode, COMPILE_MODES)
    if trainer.compile_mode != "default" and not trainer.compile:
        raise ConfigError(f"trainer.compile_mode={trainer.compile_mode}: has an effect with trainer.compile=true only.")
    if trainer.compile_mode == "reduce-overhead" and trainer.accumulate > 1:
        raise ConfigError(
            "trainer.compile_mode=reduce-overhead: a CUDA graph writes its gradients where the last ones are, and "
            f"trainer.accumulate={trainer.accumulate} has to keep these. Leave one of the two out."
        )
    for key in ("max_epochs", "checkpoint_every_n_steps"):
        if getattr(trainer, key) is not None:
            check_at_least(f"trainer.{key}", getattr(trainer, key), 1)
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


def check_launcher(launcher: LauncherConfig) -> None:
    check_choice("launcher.name", launcher.name, ("processes", "inline"))
    check_at_least("launcher.devices_per_job", launcher.devices_per_job, 1)
    check_at_least("launcher.grace", launcher.grace, 0)
    # A run is heard of four times a minute.
    if launcher.hang_after is not None and not 1 <= launcher.hang_after < math.inf:
        raise ConfigError(f"launcher.hang_after={launcher.hang_after}: must be 1 minute or more, or null for no limit.")
    devices = launcher.devices
    several = isinstance(devices, list) and devices and all(isinstance(d, int | str) for d in devices)
    if not (devices == "auto" or several or (type(devices) is int and devices >= 1)):
        raise ConfigError(
            f"launcher.devices={devices}: must be auto, how many there are to share out, or a list such as [0,1,2,3]."
        )
    if several and len(set(map(str, devices))) < len(devices):
        raise ConfigError(f"launcher.devices={devices}: names a device twice.")


def check_extent(key: str, extent: int | str) -> None:
    if extent != "global" and not (isinstance(extent, int) and extent >= 2 and extent.bit_count() == 1):
        raise bad_value(key, extent, (2, 4, 8, "global"), hint="Any power of two from 2 on will do.")


def check_choice(key: str, value: object, allowed: Collection[object]) -> None:
    if value not in allowed:
        raise bad_value(key, value, allowed)


def check_at_least(key: str, value: float, least: float) -> None:
    if not least <= value < math.inf:  # written so that NaN fails
        raise ConfigError(f"{key}={value}: must be at least {least} and finite.")
