"""The benchmarks by name, which keys of ``python -m geexp.benchmark`` belong to which, and the rules for them."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from geexp.config.catalog import IMPLEMENTATIONS, VARIANTS
from geexp.config.errors import ConfigError
from geexp.config.rules import check_at_least, check_choice, check_extent, check_model
from geexp.config.schema import BenchmarkConfig, ModelConfig

LAYOUTS = ("contiguous", "channels_last")
DTYPES = ("float32", "bfloat16")
# The feature maps at the end of ResNet-50's blocks, stage by stage.
RESNET50_SHAPES = ("56x56x256", "28x28x512", "14x14x1024", "7x7x2048")


# variants and extents of None: the benchmark's own choice, with all of which something is demanded.
@dataclass(frozen=True)
class OperatorSettings:
    """What ``what=operator`` has a use for, and what null means there; likewise the others."""

    device: str = "cpu"
    rounds: int = 5
    batch_size: int = 8
    variants: list[str] | None = None
    extents: list[int | str] | None = None
    layouts: list[str] = field(default_factory=lambda: [*LAYOUTS])
    implementations: list[str] = field(default_factory=lambda: ["auto"])
    shapes: list[str] = field(default_factory=lambda: [*RESNET50_SHAPES])
    dtypes: list[str] = field(default_factory=lambda: ["float32"])


@dataclass(frozen=True)
class StepSettings:
    device: str = "cpu"
    rounds: int = 5
    batch_size: int = 4
    variants: list[str] | None = None
    extents: list[int | str] | None = None
    layouts: list[str] = field(default_factory=lambda: ["channels_last"])
    implementations: list[str] = field(default_factory=lambda: ["auto", "fused"])
    model: ModelConfig = field(default_factory=lambda: ModelConfig("resnet50"))
    precision: str = "32-true"
    compile: bool = False


@dataclass(frozen=True)
class TrainerSettings:
    rounds: int = 7
    batch_size: int = 128
    model: ModelConfig = field(default_factory=lambda: ModelConfig("resnet20"))


@dataclass(frozen=True)
class StartupSettings:
    rounds: int = 3


@dataclass(frozen=True)
class FeedSettings:
    rounds: int = 5
    batch_size: int = 64
    root: str | None = None
    images: int = 512
    workers: int = 2


Settings = OperatorSettings | StepSettings | TrainerSettings | StartupSettings | FeedSettings
_SETTINGS: dict[str, type[Settings]] = {
    "operator": OperatorSettings,
    "step": StepSettings,
    "trainer": TrainerSettings,
    "startup": StartupSettings,
    "feed": FeedSettings,
}
_ON_A_GPU: dict[str, dict[str, Any]] = {
    "operator": {"rounds": 15, "batch_size": 256, "dtypes": ["bfloat16"]},
    "step": {"rounds": 15, "batch_size": 256, "precision": "bf16-mixed"},
}
BENCHMARKS = tuple(_SETTINGS)
_KEYS = {what: {item.name for item in fields(settings)} for what, settings in _SETTINGS.items()}


def settings_of(config: BenchmarkConfig) -> Settings:
    """What the configuration says, and where it says null, what is usual for that benchmark on that device."""
    given = {key: getattr(config, key) for key in _KEYS[config.what] if getattr(config, key) is not None}
    usual = _ON_A_GPU[config.what] if config.device == "cuda" else {}
    return _SETTINGS[config.what](**(usual | given))


def check_benchmark(config: BenchmarkConfig) -> None:
    check_choice("what", config.what, BENCHMARKS)
    check_choice("format", config.format, ("text", "json"))
    for key in sorted(set().union(*_KEYS.values()) - _KEYS[config.what]):
        value = getattr(config, key)
        if value is not None:
            shown = value.name if isinstance(value, ModelConfig) else value
            knowing = " or ".join(f"what={what}" for what, keys in _KEYS.items() if key in keys)
            raise ConfigError(f"{key}={shown}: what={config.what} has no use for it, only {knowing}.")
    settings = settings_of(config)
    for key in ("rounds", "batch_size", "images", "workers"):
        if key in _KEYS[config.what]:
            check_at_least(key, getattr(settings, key), 1)
    if isinstance(settings, FeedSettings) and settings.images < settings.batch_size:
        raise ConfigError(f"images={settings.images}: does not fill one batch of batch_size={settings.batch_size}.")
    if isinstance(settings, OperatorSettings | StepSettings):
        _check_operators(settings)
    if isinstance(settings, OperatorSettings):
        _check_shapes(settings)
    if isinstance(settings, StepSettings | TrainerSettings):
        check_model(settings.model)
    if isinstance(settings, StepSettings):
        check_choice("precision", settings.precision, ("32-true", "bf16-mixed"))


def sides(shape: str) -> tuple[int, int, int]:
    """Height, width and channels of ``56x56x256``."""
    height, width, channels = map(int, shape.split("x"))
    return height, width, channels


def _check_operators(settings: OperatorSettings | StepSettings) -> None:
    check_choice("device", settings.device, ("cpu", "cuda"))
    if settings.batch_size == 1:
        raise ConfigError("batch_size=1: batch normalisation of a gathered 1x1 map needs two images at least.")
    _check_list("variants", settings.variants, VARIANTS)
    _check_list("layouts", settings.layouts, LAYOUTS)
    _check_list("implementations", settings.implementations, IMPLEMENTATIONS)
    _check_list("extents", settings.extents)
    for extent in settings.extents or ():
        check_extent("extents", extent)


def _check_shapes(settings: OperatorSettings) -> None:
    _check_list("dtypes", settings.dtypes, DTYPES)
    _check_list("shapes", settings.shapes)
    for shape in settings.shapes:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", shape):
            raise ConfigError(f"shapes={shape}: height, width and channels belong there, as in 56x56x256.")
        height, width, channels = sides(shape)
        if channels < 16:
            raise ConfigError(f"shapes={shape}: theta_plus and se shrink to C/16 channels; give 16 at least.")
        for extent in settings.extents or ():
            if isinstance(extent, int) and extent // 2 >= min(height, width):
                raise ConfigError(
                    f"extents={extent}: a map of shapes={shape} cannot hold it, {extent // 2} reaches all of it "
                    "already. Choose smaller extents or larger shapes."
                )


def _check_list(key: str, values: Sequence[object] | None, allowed: Collection[object] | None = None) -> None:
    if values is None:
        return
    if not values:
        raise ConfigError(f"{key}=[]: nothing is left to measure; null means the usual ones.")
    if len({*map(str, values)}) < len(values):
        raise ConfigError(f"{key}={values}: names one of them twice.")
    for value in values:
        if allowed is not None:
            check_choice(key, value, allowed)
