"""From what Hydra composed to a plain, typed, checked configuration.

Hydra checks keys given on the command line, but neither ``+key=`` nor the content of YAML files, and no types. So the
composed configuration is merged into the schema once more: every unknown key and wrong type ends here.
"""

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from geexp.config.analyses import check_analyze
from geexp.config.errors import ConfigError, unknown_key
from geexp.config.rules import check_train
from geexp.config.schema import (
    AnalyzeConfig,
    CheckDataConfig,
    ComplexityConfig,
    DashboardConfig,
    DetectConfig,
    EvaluateConfig,
    PackConfig,
    ReportConfig,
    TrainConfig,
)
from geexp.config.tool_rules import (
    check_complexity,
    check_dashboard,
    check_data_check,
    check_detect,
    check_evaluate,
    check_pack,
    check_report,
)

T = TypeVar("T")

_RULES = {
    TrainConfig: check_train,
    EvaluateConfig: check_evaluate,
    AnalyzeConfig: check_analyze,
    DetectConfig: check_detect,
    ComplexityConfig: check_complexity,
    ReportConfig: check_report,
    DashboardConfig: check_dashboard,
    PackConfig: check_pack,
    CheckDataConfig: check_data_check,
}


def validated(schema: type[T], composed: DictConfig | dict[str, Any]) -> T:
    """The configuration as an instance of the dataclass ``schema``.

    Raises:
        ConfigError: for an unknown key, a value of a wrong type, a missing value, or what a rule refuses.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.create(composed), resolve=True)
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise unknown_key(str(error.full_key), known_keys(schema)) from error
    except OmegaConfBaseException as error:
        raise wrong_type(schema, error) from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"{missing[0]}: no value is given. Choose an option of the group or set the key.")
    config = cast(T, OmegaConf.to_object(merged))
    _RULES[schema](config)  # type: ignore[operator]
    return config


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """Every key of a schema, dotted, parents before children."""
    keys = []
    hints = get_type_hints(schema)
    for item in fields(schema):
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
    return ConfigError(f"{error.full_key}: {expected} belongs there. ({reason}.)")


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
    options = [_in_words(option) for option in get_args(hint)] if get_origin(hint) is not dict else []
    return " or ".join(options) if options else "another kind of value"
