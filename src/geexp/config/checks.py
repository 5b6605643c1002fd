"""Checks across the keys of a configuration. Constraints on a single key are declared in the schema."""

import math
import re
from dataclasses import fields
from functools import singledispatch

from geexp.config.errors import ConfigError, bad_value
from geexp.config.protocol import batchnorm_batch, planned_epochs, stretched
from geexp.config.schema import (
    AnalyzeConfig,
    CheckDataConfig,
    ComplexityConfig,
    DashboardConfig,
    DataConfig,
    DetectConfig,
    EvaluateConfig,
    ExportConfig,
    FeedConfig,
    GatherExciteConfig,
    LauncherConfig,
    ModelConfig,
    OptimConfig,
    PackConfig,
    RecipeConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)
from geexp.registry import options

# The data sets that a scale supports; scales not listed (smoke, custom ones) support all.
SCALES = {
    "imagenet100": ("imagenet",),
    "imagenet10": ("imagenet",),
    "cifar_short": ("cifar10", "cifar100"),
    "half": ("cifar10", "cifar100", "imagenet"),
}


@singledispatch
def check(config: object) -> None:
    """Raise ``ConfigError`` if keys of a command's configuration contradict each other."""


@check.register
def check_train(config: TrainConfig) -> None:
    check_scale(config.scale, config.data)
    check_model(config.model)
    check_ge(config.ge, config.model)
    check_task(config)
    check_data(config.data)
    check_feed(config.feed, config.data)
    check_schedule(config.schedule)
    check_optim(config.optim)
    check_launcher(config.launcher)
    check_trainer(config.trainer)
    for name, callback in config.callbacks.items():
        if callback is not None and not (isinstance(callback, dict) and "_target_" in callback):
            raise ConfigError(f"callbacks.{name}={callback}: must be null, or have the _target_ of a callback.")
    for name, logger in config.logger.loggers.items():
        if not (isinstance(logger, dict) and "_target_" in logger):
            raise ConfigError(f"logger.loggers.{name}={logger}: must have the _target_ of a logger.")
    epochs, planned = stretched(config.schedule).epochs, planned_epochs(config)
    if epochs is not None and planned is not None and planned > epochs:
        over = f"schedule={config.schedule.name} ends after {epochs} epochs"
        raise ConfigError(f"trainer.max_epochs={planned}: {over}. For a longer run set schedule.epochs.")
    # A detector may train with one image per device: its BN is frozen, or sees the many positions of large maps.
    if batchnorm_batch(config) < 2 and not config.detects:
        raise ConfigError(
            f"optim.batch_size={config.optim.batch_size} leaves one image per device; batch normalisation needs two. "
            "Use fewer trainer.devices, a smaller trainer.accumulate, or trainer.sync_batchnorm=true."
        )
    if config.resume not in (True, False, "auto"):
        raise bad_value("resume", config.resume, ("auto", "true", "false"))
    if config.force and config.resume is True:
        raise ConfigError("force=true restarts the run and resume=true continues it: choose one of the two.")


def check_scale(scale: str | None, data: DataConfig) -> None:
    """Must be the first check: on another data set a scale also breaks other checks, with misleading messages."""
    if scale in SCALES and data.name not in SCALES[scale]:
        others = [name for name, those in SCALES.items() if data.name in those]
        raise ConfigError(
            f"scale={scale}: supports data={' or '.join(SCALES[scale])}, not data={data.name}. "
            f"For data={data.name} use scale={' or '.join([*others, 'smoke'])}."
        )


def check_model(model: ModelConfig) -> None:
    for key, value in (("stride_in", model.stride_in), ("shortcut", model.shortcut)):
        if value is not None and key not in options("model").get(model.name, {}):
            raise ConfigError(f"model.{key}={value}: not an option of {model.name}; leave it null.")
    if not model.stages:
        raise ConfigError(f"model.stages=[]: list the stages of {model.name} that can hold GE, as in [2,3,4,5].")


def check_ge(ge: GatherExciteConfig, model: ModelConfig) -> None:
    for key, value in (("pool", ge.pool), ("border", ge.border)):
        if value in ("max", "padded") and key not in ge.settings and ge.variant != "none":
            pooling = sorted(name for name, entry in options("ge").items() if key in entry.get("settings", []))
            only = " and ".join(pooling[::-1])
            raise ConfigError(f"ge.{key}={value}: {ge.variant} gathers by convolution; only {only} use pooling.")
    if ge.stages is None:
        return
    if not ge.stages:
        raise ConfigError("ge.stages=[]: no stage would have GE; for the plain backbone use ge=none.")
    if len(set(ge.stages)) < len(ge.stages):
        raise ConfigError(f"ge.stages={ge.stages}: lists a stage twice.")
    for stage in ge.stages:
        if stage not in model.stages:
            allowed = f"Allowed: {', '.join(map(str, model.stages))}, or null for all."
            raise ConfigError(f"ge.stages={ge.stages}: {model.name} has no stage {stage}. {allowed}")


def check_task(config: TrainConfig) -> None:
    """Check that detector, data, backbone and GE are compatible."""
    detector, data = config.detector, config.data
    if not config.detects:
        if data.kind == "boxes":
            raise ConfigError(f"data={data.name} has boxes, not one class per image: choose detector=c4 or fpn.")
        if config.backbone_checkpoint is not None:
            raise ConfigError("backbone_checkpoint: only for detectors; for a classifier set weights=<file> instead.")
        return
    if config.weights is not None:
        raise ConfigError("weights: only for classifiers; for a detector set backbone_checkpoint=<file> instead.")
    if data.kind != "boxes":
        sets = [name for name, entry in options("data").items() if entry.get("kind") == "boxes"]
        raise ConfigError(f"data={data.name} has no boxes: a detector needs data={' or '.join(sets)}.")
    if not config.model.detection:
        usable = [name for name, entry in options("model").items() if entry.get("detection", True)]
        raise ConfigError(
            f"model={config.model.name}: not supported as a detector's backbone, since the stages of a pre-activation "
            f"network end without BN and ReLU. Choose {', '.join(usable[:-1])} or {usable[-1]}."
        )
    if config.ge.fixed_size and config.ge.extent == "global":
        raise ConfigError(
            f"ge.extent=global: {config.ge.variant} gathers with a kernel as large as the feature map, and the images "
            "of a detector differ in size. Choose ge.extent=2, 4 or 8, or the pooling variants ge=theta_minus or ge=se."
        )
    if data.keep_classes is not None:
        raise ConfigError(f"data.keep_classes={data.keep_classes}: not supported for detection sets; leave it out.")
    if data.channels != 3:
        raise ConfigError(f"data.channels={data.channels}: a detector needs colour images, data.channels=3.")
    augmentation = data.augmentation
    if augmentation.crop is not None or augmentation.rotation or augmentation.jitter:
        raise ConfigError("data/augmentation: detectors support only mirror and none; choose one of them.")
    if config.optim.label_smoothing:
        smoothing = config.optim.label_smoothing
        raise ConfigError(f"optim.label_smoothing={smoothing}: not supported for detectors; leave it out.")
    if config.trainer.overfit_batches:
        raise ConfigError("trainer.overfit_batches: not supported for detectors; use trainer.limit_train_batches.")
    if config.trainer.compile:
        raise ConfigError("trainer.compile=true: not supported for detectors, whose shapes vary; leave it out.")
    if detector.max_size < detector.min_size:
        raise ConfigError(f"detector.max_size={detector.max_size}: is below detector.min_size={detector.min_size}.")
    if detector.anchor_sizes is not None and not (detector.anchor_sizes and min(detector.anchor_sizes) > 0):
        raise ConfigError(f"detector.anchor_sizes={detector.anchor_sizes}: must be in pixels, as in [64,128,256,512].")
    if config.schedule.kind == "plateau":
        raise ConfigError(
            f"schedule={config.schedule.name} monitors {config.schedule.monitor}, which a detector does not compute; "
            "choose schedule=coco_faster_rcnn, or another schedule of kind steps or cosine."
        )


def check_data(data: DataConfig) -> None:
    for key in ("mean", "std"):
        values = getattr(data, key)
        if len(values) != data.channels:
            raise ConfigError(f"data.{key}={values}: needs one number per channel, data.channels={data.channels}.")
    if not all(0 < value < math.inf for value in data.std) or not all(map(math.isfinite, data.mean)):
        raise ConfigError(f"data.mean={data.mean}, data.std={data.std}: must be finite, and std above 0.")
    if data.keep_classes is not None and data.num_classes != data.keep_classes:
        raise ConfigError(
            f"data.num_classes={data.num_classes}: does not match data.keep_classes={data.keep_classes}. "
            f"Set data.num_classes={data.keep_classes}, or leave data.keep_classes out."
        )
    check_recipe(data.recipe)


def check_recipe(recipe: RecipeConfig) -> None:
    sides = [key for key in ("max_side", "short_side") if getattr(recipe, key) is not None]
    if recipe.name == "original" and sides:
        raise ConfigError(f"recipe=original keeps every file as it is: leave out data.recipe.{sides[0]}.")
    if recipe.name != "original" and len(sides) != 1:
        raise ConfigError(
            f"recipe={recipe.name} shrinks images: set either data.recipe.max_side or data.recipe.short_side, in "
            "pixels, and the other to null."
        )
    if (recipe.quality is None) == (recipe.name == "jpeg"):
        raise ConfigError(f"data.recipe.quality={recipe.quality}: required by recipe=jpeg, null for the other recipes.")


def check_feed(feed: FeedConfig, data: DataConfig) -> None:
    """Check that a feed supports this data set and augmentation."""
    if (feed.name == "coco") != (data.kind == "boxes"):
        raise ConfigError(f"feed={feed.name}: does not support data={data.name}. Use feed={data.default_feed}.")
    others = f"Use feed={data.default_feed}" + (" or feed=reference." if data.default_feed != "reference" else ".")
    if feed.name == "reference" and feed.engine == "threads":
        raise ConfigError("feed.engine=threads: feed=reference uses torch's global random generator; use workers.")
    if feed.name == "resident":
        if data.kind != "arrays":
            raise ConfigError(f"feed=resident: the images of data={data.name} differ in size. {others}")
        if feed.workers:
            raise ConfigError(f"feed.workers={feed.workers}: feed=resident has no workers; leave it out.")
        if data.evaluation_crop is not None:
            raise ConfigError(f"data.evaluation_crop={data.evaluation_crop}: feed=resident does not resize. {others}")
    if feed.name in ("folder", "pack"):
        if data.kind != "files":
            raise ConfigError(f"feed={feed.name}: data={data.name} is not a folder of image files. {others}")
        if data.channels != 3:
            raise ConfigError(f"data.channels={data.channels}: feed={feed.name} needs colour images, data.channels=3.")
        if data.evaluation_crop is None:
            raise ConfigError(f"data.evaluation_crop=null: feed={feed.name} needs data.evaluation_crop=centre.")
    possible = {"reference": ("pad", "resized", None), "resident": ("pad", None)}.get(feed.name, ("resized", None))
    if data.augmentation.crop not in possible:
        wanted = f"data.augmentation.crop={data.augmentation.crop}"
        raise ConfigError(
            f"{wanted}: not supported by feed={feed.name}. Choose another data/augmentation, or feed=reference."
        )
    if feed.name == "resident" and (data.augmentation.rotation or data.augmentation.jitter):
        raise ConfigError("data.augmentation.rotation and jitter: not supported by feed=resident; use feed=reference.")
    if data.recipe.name != "original" and feed.name != "pack":
        raise ConfigError(
            f"recipe={data.recipe.name}: only a pack has shrunk images; use feed=pack or recipe=original."
        )


def check_schedule(schedule: ScheduleConfig) -> None:
    if (schedule.kind is None) == (schedule._target_ is None):
        raise ConfigError(
            f"schedule.kind={schedule.kind}, schedule._target_={schedule._target_}: set either schedule.kind (steps, "
            "cosine or plateau) or schedule._target_ (the import path of a function)."
        )
    units = [unit for unit in ("epochs", "iterations") if getattr(schedule, unit) is not None]
    if len(units) != 1:
        raise ConfigError(
            f"schedule.epochs={schedule.epochs}, schedule.iterations={schedule.iterations}: set one of the two and the "
            "other to null; it is also the unit of schedule.warmup and schedule.milestones."
        )
    (unit,) = units
    length = getattr(schedule, unit)
    if schedule.warmup >= length:
        raise ConfigError(f"schedule.warmup={schedule.warmup}: must be less than schedule.{unit}={length}.")
    short = stretched(schedule)  # rounds the length to a whole number, but not the warm-up
    if short.warmup >= getattr(short, unit):
        raise ConfigError(
            f"schedule.stretch={schedule.stretch}: shortens the schedule to schedule.{unit}={getattr(short, unit)}, "
            f"not more than the warm-up of {short.warmup:g}. Set a shorter schedule.warmup, or another stretch."
        )
    if schedule.kind != "steps" and schedule.milestones:
        raise ConfigError(f"schedule.milestones={schedule.milestones}: only schedule.kind=steps has milestones.")
    if schedule.milestones != sorted(set(schedule.milestones)) or any(m < 1 for m in schedule.milestones):
        raise ConfigError(f"schedule.milestones={schedule.milestones}: must be {unit} in increasing order, at least 1.")
    if schedule.kind == "plateau":
        if unit != "epochs":
            raise ConfigError("schedule.iterations: plateaus are detected once per epoch; set schedule.epochs instead.")
        if schedule.factor >= 1:
            raise ConfigError(f"schedule.factor={schedule.factor}: must be below 1 to lower the learning rate.")


def check_optim(optim: OptimConfig) -> None:
    if optim.nesterov and optim.momentum == 0:
        raise ConfigError("optim.nesterov=true needs optim.momentum above 0.")


def check_trainer(trainer: TrainerConfig) -> None:
    if trainer.sync_batchnorm and trainer.accelerator == "cpu":
        raise ConfigError("trainer.sync_batchnorm=true: torch synchronises batch normalisation on GPUs only.")
    if trainer.compile_mode != "default" and not trainer.compile:
        raise ConfigError(f"trainer.compile_mode={trainer.compile_mode}: has no effect without trainer.compile=true.")
    if trainer.compile_mode == "reduce-overhead" and trainer.accumulate > 1:
        raise ConfigError(
            "trainer.compile_mode=reduce-overhead: CUDA graphs overwrite the gradients of the previous batch, which "
            f"trainer.accumulate={trainer.accumulate} has to keep. Leave one of the two out."
        )
    for key in ("limit_train_batches", "limit_val_batches", "overfit_batches"):
        value = getattr(trainer, key)
        off = value is None or (key == "overfit_batches" and value == 0)
        if not off and not (value > 0 and (not isinstance(value, float) or value <= 1)):
            raise ConfigError(f"trainer.{key}={value}: must be a number of batches, or a fraction above 0.0 up to 1.0.")


def check_launcher(launcher: LauncherConfig) -> None:
    devices = launcher.devices
    several = isinstance(devices, list) and devices and all(isinstance(d, int | str) for d in devices)
    if not (devices == "auto" or several or (type(devices) is int and devices >= 1)):
        raise ConfigError(f"launcher.devices={devices}: must be auto, a number, or a list such as [0,1,2,3].")
    if several and len(set(map(str, devices))) < len(devices):
        raise ConfigError(f"launcher.devices={devices}: lists a device twice.")


@check.register
def check_complexity(config: ComplexityConfig) -> None:
    check_model(config.model)
    check_ge(config.ge, config.model)
    defaults = {item.name: item.default for item in fields(ComplexityConfig)}
    for key in ("image_size", "num_classes", "in_channels"):
        if config.table is not None and getattr(config, key) != defaults[key]:
            raise ConfigError(f"{key}={getattr(config, key)}: not an option together with table=; leave it out.")


@check.register
def check_evaluate(config: EvaluateConfig) -> None:
    if bool(config.run) == bool(config.checkpoint):
        raise ConfigError("set either run=<a run's folder> or checkpoint=<a .ckpt file>.")


@check.register
def check_export(config: ExportConfig) -> None:
    if not config.run:
        raise ConfigError("run is missing; set it with run=<a run's folder>.")


@check.register
def check_detect(config: DetectConfig) -> None:
    if not config.run:
        raise ConfigError("run is missing; set it with mode=predict run=<a detector's run folder>.")


# The keys of geexp.analyze that apply to some analyses only.
_OF_ANALYSES = {
    "selectivity": ("stage", "blocks", "images", "split"),
    "pruning": ("blocks", "ratios", "images", "split"),
    "receptive_field": ("blocks", "images", "split"),
    "gates": ("images", "split"),
    "curves": (),
}


@check.register
def check_analyze(config: AnalyzeConfig) -> None:
    if not config.run:
        raise ConfigError(f"run is missing; set it with analysis={config.analysis} run=<a run's folder>.")
    for key, default in (("stage", None), ("blocks", None), ("ratios", None), ("images", None), ("split", "val")):
        value = getattr(config, key)
        if value != default and key not in _OF_ANALYSES[config.analysis]:
            having = " or ".join(name for name, keys in _OF_ANALYSES.items() if key in keys)
            raise ConfigError(f"{key}={value}: not an option of analysis={config.analysis}, only of {having}.")
    if config.stage is not None and config.blocks is not None:
        raise ConfigError(f"stage={config.stage} and blocks={config.blocks} exclude each other: set one of the two.")
    for name in config.blocks or ():
        if not re.fullmatch(r"conv[2-5]_\d+", name):
            raise ConfigError(f"blocks={config.blocks}: {name!r} is not the name of a block, such as conv4_1.")
    if config.blocks is not None and not config.blocks:
        raise ConfigError("blocks=[]: name at least one block; null means the paper's choice.")
    if config.ratios is not None and not (config.ratios and all(0 <= ratio <= 1 for ratio in config.ratios)):
        raise ConfigError(f"ratios={config.ratios}: must be numbers from 0 to 1, as in [0,0.5,1].")


@check.register
def check_dashboard(config: DashboardConfig) -> None:
    if config.name is None:
        raise ConfigError("sweep is missing; set it as in sweep=table2.")
    if not re.fullmatch(r"[\w.-]+", config.name):
        raise ConfigError(f"sweep={config.name}: must be the name of a sweep, as in sweep=table2.")
    if config.out is not None and not config.dry_run:
        raise ConfigError(f"out={config.out}: has no effect without dry_run=true.")


@check.register
def check_pack(config: PackConfig) -> None:
    if config.data.keep_classes is not None:
        kept = f"data.keep_classes={config.data.keep_classes}"
        raise ConfigError(f"{kept}: a pack contains all classes; leave it out here and set it in training.")
    check_data(config.data)
    if config.data.kind != "files":
        nothing = f"data={config.data.name}: there are no image files to pack"
        raise ConfigError(f"{nothing}. Train with feed={config.data.default_feed}.")


@check.register
def check_data_check(config: CheckDataConfig) -> None:
    check_data(config.data)
    check_feed(config.feed, config.data)
