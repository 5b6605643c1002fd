"""What a run is called: by everything that determines its result, so that a changed configuration is another run."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from geexp.config.catalog import BACKBONES
from geexp.config.detection import detector_identity, is_detection
from geexp.config.errors import ConfigError
from geexp.config.protocol import base_rate, batchnorm_batch, planned_epochs, stretched
from geexp.config.schema import GatherExciteConfig, ModelConfig, RecipeConfig, ScheduleConfig, TrainConfig
from geexp.config.validation import validated

# Where the data lie and how they were fetched does not change them.
_NOT_OF_THE_DATA = ("root", "download", "default_feed")
# Our own callbacks, which change nothing; those of a user may.
_ONLY_WATCH = ("progress", "best", "device_stats")
_OF_A_PLATEAU = ("factor", "monitor", "patience", "threshold", "reductions")
_OF_THE_TRAINER = ("precision", "max_epochs", "limit_train_batches", "limit_val_batches", "overfit_batches")


def identity(config: TrainConfig) -> dict[str, Any]:
    """The part of the configuration that determines the result; settings of GE without an effect are left out."""
    whole = asdict(config)
    if BACKBONES[config.model.name].module == "geexp.backbones.resnet":
        whole["model"]["stride_in"] = config.model.stride_in or "1x1"
    callbacks = {name: c for name, c in config.callbacks.items() if c is not None and name not in _ONLY_WATCH}
    del whole["optim"]["lr_for_batch"]
    if config.optim.clip_norm is None:
        del whole["optim"]["clip_norm"]
    whole["trainer"]["max_epochs"] = planned_epochs(config)
    return {
        "model": whole["model"],
        "ge": effective_ge(config.ge, config.model),
        "data": {key: value for key, value in whole["data"].items() if key not in _NOT_OF_THE_DATA},
        "schedule": effective_schedule(config.schedule),
        # However many devices make a step, its images are the same; what BN sees at once, and how often, is not.
        "optim": whole["optim"]
        | {"lr": base_rate(config.optim), "batchnorm_batch": batchnorm_batch(config)}
        | {"accumulate": config.trainer.accumulate},
        "trainer": {key: whole["trainer"][key] for key in _OF_THE_TRAINER},
        "seed": config.seed,
        **({"callbacks": callbacks} if callbacks else {}),
        **({"scale": config.scale} if config.scale else {}),
        **({"detector": detector_identity(config)} if is_detection(config) else {}),
    }


def effective_schedule(schedule: ScheduleConfig) -> dict[str, Any]:
    """The settings of the schedule that have an effect, its lengths as stretched."""
    kinds = {"cosine": (), "steps": ("milestones", "factor"), "plateau": _OF_A_PLATEAU}
    keys = ["name", "kind", "epochs" if schedule.iterations is None else "iterations", "warmup", *kinds[schedule.kind]]
    if schedule.warmup:
        keys.append("warmup_factor")
    whole = asdict(stretched(schedule))
    return {key: whole[key] for key in keys}


def effective_ge(ge: GatherExciteConfig, model: ModelConfig) -> dict[str, Any]:
    """The settings of GE that have an effect: ``ge=none extent=4`` is the same network as ``ge=none``."""
    if ge.variant == "none":
        return {"variant": "none"}
    stages = sorted(ge.stages) if ge.stages is not None else list(BACKBONES[model.name].stages)
    settings: dict[str, Any] = {"variant": ge.variant, "extent": ge.extent, "stages": stages}
    if ge.variant in ("theta_minus", "se"):
        settings["pool"] = ge.pool
    if ge.variant in ("theta_plus", "se"):
        settings["reduction"] = ge.reduction
    return settings


def ge_slug(ge: GatherExciteConfig, model: ModelConfig) -> str:
    """``theta-e8-stages45`` and the like; ``none`` for the plain backbone."""
    settings = effective_ge(ge, model)
    if settings["variant"] == "none":
        return "none"
    extent = settings["extent"]
    words = [settings["variant"].replace("_", "-"), "global" if extent == "global" else f"e{extent}"]
    if settings["stages"] != list(BACKBONES[model.name].stages):
        words.append("stage" + "".join(map(str, settings["stages"])))
    if settings.get("pool") == "max":
        words.append("max")
    return "-".join(words)


def recipe_slug(recipe: RecipeConfig) -> str:
    """``original``, ``jpeg-max500-q90``, ``raw-short256`` and the like."""
    words = [recipe.name]
    words += [f"{kind}{side}" for kind, side in (("max", recipe.max_side), ("short", recipe.short_side)) if side]
    return "-".join([*words, f"q{recipe.quality}"] if recipe.quality else words)


def data_slug(config: TrainConfig) -> str:
    """The data set, with the scale and the recipe if they are not the usual ones, which make it another."""
    data = config.data.name
    if config.scale is not None:  # another data set, and not the protocol: said where nobody can miss it
        data += f"-{config.scale}"
    elif config.data.keep_classes is not None:
        data += f"-{config.data.keep_classes}classes"
    if config.data.recipe.name != "original":  # another data set
        data += f"-{recipe_slug(config.data.recipe)}"
    return data


def run_folder(config: TrainConfig) -> str:
    """``<data>/<model>/<ge>/<schedule>/seed<n>-<hash>``: readable, and different for every different result."""
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
    ge = ge_slug(config.ge, config.model)
    if is_detection(config):
        ge = f"{config.detector.layout}-{ge}"
    return f"{data_slug(config)}/{config.model.name}/{ge}/{config.schedule.name}/seed{config.seed}-{digest}"


def require_same_identity(folder: Path, recorded: dict[str, Any], config: TrainConfig) -> None:
    """Raise ``ConfigError``, naming the keys, if what lies in a run's folder came from another configuration."""
    ours, theirs = flat(identity(config)), flat(recorded)
    different = [
        f"{key}={ours.get(key)} (there: {theirs.get(key)})"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if different:
        raise ConfigError(
            f"{folder} holds a run of another configuration: {', '.join(different)}. "
            "Choose another folder, or start over in this one with force=true."
        )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary with dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """What ``flat`` has made flat."""
    tree: dict[str, Any] = {}
    for key, value in leaves.items():
        *path, last = key.split(".")
        below = tree
        for name in path:
            below = below.setdefault(name, {})
        below[last] = value
    return tree


def of_the_task(composed: DictConfig) -> DictConfig:
    """What Hydra composed without what is Hydra's own, or geexp.plan's."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key not in ("hydra", "hardware")])


def register_resolvers() -> None:
    """``${geexp.run_folder:}`` for Hydra's output folders. It validates, so a bad configuration makes no folder."""

    def resolve(*, _root_: DictConfig) -> str:
        return run_folder(validated(TrainConfig, of_the_task(_root_)))

    OmegaConf.register_new_resolver("geexp.run_folder", resolve, replace=True)
