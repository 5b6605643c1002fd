"""From what Hydra composed to a plain, typed, checked configuration.

Hydra checks the keys of the command line, but neither ``+key=`` nor the content of YAML files, and no types. So the
composed configuration is merged into its schema: every unknown key, wrong type and refused value ends here.
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

# The groups whose options may be a user's own, and the key that names the option.
OPEN_GROUPS = {"model": "name", "ge": "variant", "data": "name", "schedule": "name", "optim": None}
# What describes an option without changing it, and comes from our own file where a configuration does not say it.
FACTS = {
    "model": ("label", "stages", "home_size", "home_classes", "gmacs", "last_gmacs", "detection"),
    "ge": ("label", "settings", "fixed_size", "order", "style"),
    "data": ("kind", "requires", "archives", "downloadable", "splits", "training_images", "total_classes"),
    "schedule": (),
    "optim": (),
}
# Settings of our own options, which mean nothing to a user's own: to that they go as arguments.
_OURS_ONLY = {
    "model": ("stride_in", "shortcut"),
    "ge": ("pool", "border", "reduction", "implementation"),
    "data": (),
    "schedule": ("milestones", "factor", "monitor", "patience", "threshold", "reductions"),
    "optim": ("momentum", "nesterov"),
}


def store_schema(name: str, schema: type) -> None:
    """Let the configuration's files name a schema, for its defaults. Types are checked in ``validated``, since options
    from outside bring keys of their own."""
    register_resolvers()
    defaults = OmegaConf.to_container(OmegaConf.structured(schema))
    assert isinstance(defaults, dict)
    for group in OPEN_GROUPS:
        if isinstance(defaults.get(group), dict):
            del defaults[group]["arguments"]
            defaults[group] |= dict.fromkeys(_OURS_ONLY[group])  # None until a file or the command line gives a value
    ConfigStore.instance().store(name=name, node=defaults)


@cache
def composed_training(*overrides: str) -> TrainConfig:
    """What ``python -m geexp.train <overrides>`` would train. It takes a tenth of a second; treat it as read-only.

    Raises:
        ConfigError: as the command would.
    """
    store_schema("train_schema", TrainConfig)
    with outside_of_a_command(), initialize_config_dir(str(config_directory()), version_base="1.3"):
        return validated(TrainConfig, compose("train", overrides=list(overrides)))


def validated(schema: type[T], composed: DictConfig | dict[str, Any]) -> T:
    """The configuration as an instance of the dataclass ``schema``.

    Raises:
        ConfigError: for an unknown key, a value of a wrong type, a missing value, or what a check refuses.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.create(composed), resolve=True)
        assert isinstance(plain, dict)
        known = {item.name: item.type for item in fields(cast(Any, schema))}
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
        raise ConfigError(f"{missing[0]}: no value is given. Choose an option of the group or set the key.")
    config = cast(T, OmegaConf.to_object(merged))
    check_values(config)
    check(config)
    return config


def is_ours(target: object) -> bool:
    """Whether a ``_target_`` is an option that comes with geexp."""
    return target is None or str(target).startswith("geexp.")


def _described(group: str, schema: type, values: dict[str, Any]) -> dict[str, Any]:
    """The group with its facts, and with its arguments apart."""
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
    """What our file says of the option that is named.

    Raises:
        ConfigError: for a network or a variant by another name than its own.
    """
    if name_key is None:
        return {}
    name, target, ours = values.get(name_key), values.get("_target_"), options(group)
    by_name = [entry for entry in ours.values() if entry.get(name_key) == name]
    # A name made of an argument, such as timm's, is recognised by its target.
    by_target = [entry for entry in ours.values() if "${" in str(entry.get(name_key)) and entry["_target_"] == target]
    same = [entry for entry in by_name if entry.get("_target_") == target]  # a folder may be called imagenet
    found = next(iter(same or by_target or by_name), {})
    if group in ("model", "ge") and name not in (None, MISSING):
        if not found:
            raise bad_value(f"{group}.{name_key}", name, ours)
        # The name alone was changed: what belongs to it, by which the two are told apart, is another option's.
        if any(values.get(key) not in (None, found.get(key)) for key in ("_target_", "label")):
            raise ConfigError(f"{group}.{name_key}={name}: choose {group}={name}, with all that belongs to it.")
    return found


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
    """The error for a value that OmegaConf could not take for the key it names."""
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
