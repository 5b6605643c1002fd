"""Convert a configuration composed by Hydra to a typed and checked dataclass.

Hydra checks the keys of the command line, but neither ``+key=`` nor the content of YAML files, and no types. Therefore
the composed configuration is merged into its schema, which detects unknown keys, wrong types and invalid values.
"""

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from geexp.config.checks import check
from geexp.config.class_folders import register_resolvers
from geexp.config.constraints import check_values
from geexp.config.errors import ConfigError, UserError, bad_value, causes, unknown_key
from geexp.config.hydra_private import outside_of_a_command
from geexp.config.schema import TrainConfig
from geexp.registry import config_directory, options

T = TypeVar("T")

# The groups that support custom options, and the key that holds an option's name.
OPEN_GROUPS = {"model": "name", "ge": "variant", "data": "name", "schedule": "name", "optim": None}
# Facts about an option, which do not change it; their defaults come from our YAML file of the option.
FACTS = {
    "model": ("label", "stages", "home_size", "home_classes", "gmacs", "last_gmacs", "detection"),
    "ge": ("label", "settings", "fixed_size", "order", "style"),
    "data": ("kind", "requires", "archives", "downloadable", "splits", "training_images", "total_classes"),
    "schedule": (),
    "optim": (),
}
# Settings of built-in options; for a custom option these keys are ordinary arguments.
_OURS_ONLY = {
    "model": ("stride_in", "shortcut"),
    "ge": ("pool", "border", "reduction", "implementation"),
    "data": (),
    "schedule": ("milestones", "factor", "monitor", "patience", "threshold", "reductions"),
    "optim": ("momentum", "nesterov"),
}
# Keys of the group logger that are W&B's.
_OF_WANDB = ("project", "entity", "group", "mode")


def store_schema(name: str, schema: type) -> None:
    """Register a schema with Hydra, for the defaults in ``conf/<name>.yaml``.

    Types are checked later, in ``validated``, since custom options add keys.
    """
    register_resolvers()
    defaults = OmegaConf.to_container(OmegaConf.structured(schema))
    assert isinstance(defaults, dict)
    if "logger" in defaults:
        defaults["logger"] = dict.fromkeys(_OF_WANDB)  # None until a file or the command line gives a value
    for group in OPEN_GROUPS:
        if isinstance(defaults.get(group), dict):
            del defaults[group]["arguments"]
            defaults[group] |= dict.fromkeys(_OURS_ONLY[group])  # None until a file or the command line gives a value
    ConfigStore.instance().store(name=name, node=defaults)


@cache
def composed_training(*overrides: str) -> TrainConfig:
    """The configuration of ``python -m geexp.train <overrides>``, read-only. Composing takes a tenth of a second.

    Raises:
        ConfigError: for overrides that the command would reject.
    """
    store_schema("train_schema", TrainConfig)
    with outside_of_a_command(), initialize_config_dir(str(config_directory()), version_base="1.3"):
        return validated(TrainConfig, compose("train", overrides=list(overrides)))


def validated(schema: type[T], composed: DictConfig | dict[str, Any]) -> T:
    """The configuration as an instance of the dataclass ``schema``.

    Raises:
        ConfigError: for an unknown key, a value of a wrong type, a missing value, or a failed check.
    """
    try:
        known = {item.name: item.type for item in fields(cast(Any, schema))}
        unresolved = OmegaConf.to_container(OmegaConf.create(composed))
        assert isinstance(unresolved, dict)
        has_loggers = "logger" in known and isinstance(unresolved.get("logger"), dict)
        loggers = _pop_loggers(unresolved["logger"]) if has_loggers else {}
        plain = OmegaConf.to_container(OmegaConf.create(unresolved), resolve=True)
        assert isinstance(plain, dict)
        for group in OPEN_GROUPS:
            if group in known and isinstance(plain.get(group), dict):
                plain[group] = _described(group, cast(type, known[group]), dict(plain[group]))
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise unknown_key(str(error.full_key), known_keys(schema)) from error
    except OmegaConfBaseException as error:
        of_a_resolver = [link for link in causes(error) if isinstance(link, UserError)]
        raise next(iter(of_a_resolver), wrong_type(schema, error)) from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"{missing[0]}: the value is missing. Choose an option of the group or set the key.")
    config = cast(T, OmegaConf.to_object(merged))
    if loggers:
        cast(Any, config).logger.loggers = loggers
    check_values(config)
    check(config)
    return config


def is_ours(target: object) -> bool:
    """Whether a ``_target_`` belongs to an option that comes with geexp."""
    return target is None or str(target).startswith("geexp.")


def _described(group: str, schema: type, values: dict[str, Any]) -> dict[str, Any]:
    """The group's values, completed by the option's facts, with unknown keys moved to ``arguments``."""
    name_key, target = OPEN_GROUPS[group], values.get("_target_")
    arguments = dict(values.pop("arguments", None) or {})
    known = {item.name for item in fields(cast(Any, schema))}
    if not is_ours(target):
        if name_key is not None and values.get(name_key) in (None, MISSING):
            values[name_key] = str(target).rpartition(".")[2]
        arguments |= {key: values.pop(key) for key in _OURS_ONLY[group] if values.get(key) is not None}
        arguments |= {key: values.pop(key) for key in list(values) if key not in known}
    else:
        entry = _our_option(group, name_key, values)
        arguments |= {key: values.pop(key) for key in list(values) if key not in known and key in entry}
        for key in ("_target_", *FACTS[group]):
            if key in entry and values.get(key) in (None, MISSING, [], {}):
                values[key] = entry[key]
    for key in _OURS_ONLY[group]:
        if values.get(key, ...) is None:
            del values[key]
    return values | ({"arguments": arguments} if arguments else {})


def _our_option(group: str, name_key: str | None, values: dict[str, Any]) -> dict[str, Any]:
    """The content of our YAML file for the chosen option.

    Raises:
        ConfigError: if the name of a network or variant was changed without changing its other settings.
    """
    if name_key is None:
        return {}
    name, target, ours = values.get(name_key), values.get("_target_"), options(group)
    by_name = [entry for entry in ours.values() if entry.get(name_key) == name]
    # A name that depends on an argument, as in timm.yaml, is recognised by its _target_.
    by_target = [entry for entry in ours.values() if "${" in str(entry.get(name_key)) and entry["_target_"] == target]
    same = [entry for entry in by_name if entry.get("_target_") == target]  # a folder may be called imagenet
    found = next(iter(same or by_target or by_name), {})
    if group in ("model", "ge") and name not in (None, MISSING):
        if not found:
            raise bad_value(f"{group}.{name_key}", name, ours)
        # Only the name was changed; the other settings still belong to another option.
        if any(values.get(key) not in (None, found.get(key)) for key in ("_target_", "label")):
            raise ConfigError(f"{group}.{name_key}={name}: use {group}={name}, which also sets its other keys.")
    return found


def _pop_loggers(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Remove the loggers from the logger group's values, and return them by name.

    Every file of the group adds a logger under a name of its own, so that several can be chosen. A custom file may have
    ``_target_`` and arguments at the top instead; there, W&B's keys are arguments unless W&B is chosen, too.
    Interpolations stay unresolved until the logger is made, since they may be secrets, which must not be recorded.
    """
    loggers = values.pop("loggers", {})
    if "_target_" not in values and (name := values.pop("name", None)) is not None:  # as in earlier editions
        if name not in options("logger"):
            raise bad_value("logger", name, options("logger"))
        loggers |= {key: entry for key, entry in options("logger")[name].items() if isinstance(entry, dict)}
    for key, value in list(values.items()):
        if value is None:
            del values[key]
        elif isinstance(value, dict) and "_target_" in value:
            loggers[key] = values.pop(key)
    if "_target_" in values:
        kept = _OF_WANDB if "wandb" in loggers else ("group",)
        entry = {key: values.pop(key) for key in list(values) if key not in kept}
        loggers[str(entry["_target_"]).rpartition(".")[2]] = entry
    return loggers


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """Every key of a schema, dotted, parents before children."""
    keys = []
    hints = get_type_hints(schema)
    for item in fields(cast(Any, schema)):
        keys.append(prefix + item.name)
        if is_dataclass(hints[item.name]):
            keys += known_keys(cast(type, hints[item.name]), f"{prefix}{item.name}.")
    return keys


def wrong_type(schema: type, error: OmegaConfBaseException) -> ConfigError:
    """The error for a value that OmegaConf could not convert to the type of its key."""
    reason = str(error).splitlines()[0].rstrip(".")
    if not error.full_key:
        return ConfigError(f"{reason}.")
    if isinstance(error, InterpolationResolutionError):
        return ConfigError(f"{error.full_key}: {reason}.")
    expected = _in_words(_hint_of(schema, error.full_key))
    return ConfigError(f"{error.full_key}: must be {expected}. ({reason}.)")


_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null"}


def _hint_of(schema: Any, key: str) -> Any:
    for name in key.split("."):
        if not is_dataclass(schema):
            return Any
        schema = get_type_hints(schema).get(name.partition("[")[0], Any)
    return schema


def _in_words(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    if get_origin(hint) is list:
        return "a list such as [4,5]" if get_args(hint) == (int,) else "a list such as [0.5,0.5]"
    options_ = [_in_words(option) for option in get_args(hint)] if get_origin(hint) is not dict else []
    return " or ".join(options_) if options_ else "another kind of value"
