"""The identity of a run: everything that determines its result. It names the run's folder."""

import hashlib
import json
import re
from dataclasses import asdict
from textwrap import shorten
from typing import Any

from hydra.core.hydra_config import HydraConfig

from geexp.config.compose import FACTS, is_ours
from geexp.config.labels import ge_label, model_label
from geexp.config.protocol import base_rate, batchnorm_batch, planned_epochs, stretched
from geexp.config.schema import (
    AugmentationConfig,
    DetectorConfig,
    GatherExciteConfig,
    ModelConfig,
    RecipeConfig,
    ScheduleConfig,
    TrainConfig,
)
from geexp.registry import options

# The location of the data and the way to obtain them do not change the result.
_NOT_OF_THE_DATA = {"root", "download", "default_feed", *FACTS["data"]}
_NOT_OF_THE_MODEL = {*FACTS["model"]}
# Callbacks that only observe, by class; any other may change the result.
_WATCHING = {
    "geexp.training.callbacks.progress",
    "geexp.training.callbacks.BestCheckpoint",
    "geexp.training.progress.progress",  # in the configurations of earlier runs
    "geexp.training.checkpoints.BestCheckpoint",
    "pytorch_lightning.callbacks.DeviceStatsMonitor",
}
_OF_THE_TRAINER = ("precision", "max_epochs", "limit_train_batches", "limit_val_batches", "overfit_batches")
# Overrides with these prefixes change the training, so they are part of the run's W&B name.
_DETERMINING = ("model.", "ge.", "data.", "schedule.", "optim.", "trainer.", "detector.", "callbacks.")
_OF_A_KIND = {
    "cosine": (),
    "steps": ("milestones", "factor"),
    "plateau": ("factor", "monitor", "patience", "threshold", "reductions"),
}


def identity(config: TrainConfig, *, weights: str = "nothing") -> dict[str, Any]:
    """The part of the configuration that determines the result; settings without an effect are left out.

    ``weights`` is the digest of the file of initial weights.
    """
    whole = asdict(config)
    model = _chosen(whole["model"], _NOT_OF_THE_MODEL)
    own = options("model").get(config.model.name, {})
    if model["stride_in"] is None and "stride_in" in own:
        model["stride_in"] = "1x1"  # the constructors' default
    if model["shortcut"] is None:
        model["shortcut"] = own.get("shortcut")
    if model["shortcut"] is None:  # networks without the choice keep the identity of earlier editions
        del model["shortcut"]
    optim = _chosen(whole["optim"], {"lr_for_batch"})
    data = _chosen(whole["data"], _NOT_OF_THE_DATA)
    # Keys that earlier editions did not have are left out at their defaults, so that their runs keep their folders.
    if config.optim.clip_norm is None:
        del optim["clip_norm"]
    if not config.optim.label_smoothing:
        del optim["label_smoothing"]
    augmentation = config.data.augmentation
    if augmentation.crop != "resized" or augmentation.least_area == AugmentationConfig.least_area:
        del data["augmentation"]["least_area"]
    for key, default in (("momentum", 0.9), ("nesterov", False)):
        if is_ours(config.optim._target_):
            optim[key] = default if optim[key] is None else optim[key]
        else:
            del optim[key]
    callbacks = {
        name: callback
        for name, callback in config.callbacks.items()
        if callback is not None and callback["_target_"] not in _WATCHING
    }
    trainer = {key: whole["trainer"][key] for key in _OF_THE_TRAINER} | {"max_epochs": planned_epochs(config)}
    return {
        "model": model,
        "ge": effective_ge(config.ge, config.model),
        "data": data,
        "schedule": effective_schedule(config.schedule),
        # The number of devices does not change a step's images, but the number of images per BN update.
        "optim": optim
        | {"lr": base_rate(config.optim), "batchnorm_batch": batchnorm_batch(config)}
        | {"accumulate": config.trainer.accumulate},
        "trainer": trainer,
        "seed": config.seed,
        **({"callbacks": callbacks} if callbacks else {}),
        **({"scale": config.scale} if config.scale else {}),
        **({"weights": weights} if config.weights is not None else {}),
        **({"detector": _detector(config.detector) | {"backbone": weights}} if config.detects else {}),
    }


def _chosen(group: dict[str, Any], without: set[str]) -> dict[str, Any]:
    """A group's settings; for a custom option also its import path and all arguments."""
    kept = {key: value for key, value in group.items() if key not in without | {"_target_", "arguments"}}
    if not is_ours(group["_target_"]):
        kept["_target_"] = group["_target_"]
    return kept | group["arguments"]


def _detector(detector: DetectorConfig) -> dict[str, Any]:
    settings = asdict(detector)
    for key in ("box_beta", "nms_at_test"):
        if settings[key] == getattr(DetectorConfig, key):  # as in earlier editions, which had no such keys
            del settings[key]
    return settings


def effective_schedule(schedule: ScheduleConfig) -> dict[str, Any]:
    """The settings of the schedule that have an effect, with lengths multiplied by ``stretch``."""
    keys = ["name", "epochs" if schedule.iterations is None else "iterations", "warmup"]
    if schedule.warmup:
        keys.append("warmup_factor")
    if schedule.kind is not None:
        keys += ["kind", *_OF_A_KIND[schedule.kind]]
    whole = asdict(stretched(schedule))
    own = {} if schedule._target_ is None else {"_target_": schedule._target_, **schedule.arguments}
    return {key: whole[key] for key in keys} | own


def effective_ge(ge: GatherExciteConfig, model: ModelConfig) -> dict[str, Any]:
    """The settings of GE that have an effect; ``ge=none extent=4`` gives the same as ``ge=none``."""
    if ge.variant == "none":
        return {"variant": "none"}
    stages = sorted(ge.stages) if ge.stages is not None else list(model.stages)
    settings: dict[str, Any] = {"variant": ge.variant, "extent": ge.extent, "stages": stages}
    if not is_ours(ge._target_):
        settings["_target_"] = ge._target_
    defaults = {"pool": "avg", "border": "real", "reduction": 16}
    for key in ge.settings:
        value = getattr(ge, key)
        settings[key] = defaults.get(key) if value is None else value
    if settings.get("border") == "real" or ge.extent == "global" or settings.get("pool") == "max":
        settings.pop("border", None)  # without effect, or as in earlier editions, which had no such key
    return settings | ge.arguments


def ge_slug(ge: GatherExciteConfig, model: ModelConfig) -> str:
    """A folder name such as ``theta-e8-stages45``; ``none`` for the plain backbone."""
    settings = effective_ge(ge, model)
    if settings["variant"] == "none":
        return "none"
    extent = settings["extent"]
    words = [settings["variant"].replace("_", "-"), "global" if extent == "global" else f"e{extent}"]
    if settings["stages"] != list(model.stages):
        words.append("stage" + "".join(map(str, settings["stages"])))
    if settings.get("pool") == "max":
        words.append("max")
    if "border" in settings:
        words.append(settings["border"])
    return "-".join(words)


def recipe_slug(recipe: RecipeConfig) -> str:
    """A folder name such as ``original``, ``jpeg-max500-q90`` or ``raw-short256``."""
    words = [recipe.name]
    words += [f"{kind}{side}" for kind, side in (("max", recipe.max_side), ("short", recipe.short_side)) if side]
    return "-".join([*words, f"q{recipe.quality}"] if recipe.quality else words)


def data_slug(config: TrainConfig) -> str:
    """A folder name of the data set, with scale, number of classes and recipe unless default."""
    # The name of an image folder may have any characters; those that need shell quoting become dashes.
    data = re.sub(r"[^\w.+-]+", "-", config.data.name).strip("-.") or "data"
    if config.scale is not None:
        data += f"-{config.scale}"
    elif config.data.keep_classes is not None:
        data += f"-{config.data.keep_classes}classes"
    if config.data.recipe.name != "original":
        data += f"-{recipe_slug(config.data.recipe)}"
    return data


def run_folder(config: TrainConfig, whole: dict[str, Any]) -> str:
    """``<data>/<model>/<ge>/<schedule>/seed<n>-<hash>``: readable, and different for every different result.

    ``whole`` is the configuration's identity.
    """
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]
    ge = ge_slug(config.ge, config.model)
    if config.detects:
        ge = f"{config.detector.layout}-{ge}"
    return f"{data_slug(config)}/{config.model.name}/{ge}/{config.schedule.name}/seed{config.seed}-{digest}"


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two identities differ, each with both values."""
    one, other = flat(ours), flat(theirs)
    keys = sorted(one.keys() | other.keys())
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary with dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """A dictionary with dotted keys as a nested one."""
    tree: dict[str, Any] = {}
    for key, value in leaves.items():
        *path, last = key.split(".")
        below = tree
        for name in path:
            below = below.setdefault(name, {})
        below[last] = value
    return tree


def network_label(config: TrainConfig) -> str:
    """``ResNet-50 GE-θ``."""
    model = config.model.label or model_label(config.model.name)
    return f"{model} {ge_label(effective_ge(config.ge, config.model), config.ge.label)}"


def run_label(config: TrainConfig) -> str:
    """``table2_theta`` for a preset, else ``ResNet-50 GE-θ, imagenet, plateau``; then other overrides, without seed."""
    preset = _experiment()
    start = [preset] if preset else [network_label(config), data_slug(config), config.schedule.name]
    return ", ".join([*start, *_overrides(preset)])


def run_name(config: TrainConfig) -> str:
    """The label, shortened to W&B's limit, and the seed."""
    return f"{shorten(run_label(config), 100, placeholder=' …')}, seed {config.seed}"


def run_tags(config: TrainConfig) -> list[str]:
    """W&B tags: the preset (unless overrides change the training), the variant of GE, and the data set, shortened."""
    preset = _experiment()
    named = [preset] if preset and not _overrides(preset) else []
    return [tag[:64] for tag in (*named, config.ge.variant, data_slug(config))]  # W&B's limit


def _experiment() -> str | None:
    return HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None


def _overrides(preset: str | None) -> list[str]:
    """Command-line overrides that change the training, without those that the label already describes."""
    if not HydraConfig.initialized():
        return []
    groups = ["optim", "debug", "data/augmentation", "callbacks", "scale", "weights"]
    if preset:
        groups += ["model", "ge", "extent", "placement", "data", "schedule"]
    in_label = () if preset else ("ge.", "model.name", "data.name")
    kept = []
    for word in HydraConfig.get().overrides.task:
        key = word.lstrip("+").partition("=")[0]
        if key in groups or (key.startswith(_DETERMINING) and not key.startswith(in_label)):
            kept.append(word.lstrip("+"))
    return kept
