"""The analyses by name, which keys of ``python -m geexp.analyze`` belong to which, and the rules for them."""

import re

from geexp.config.errors import ConfigError
from geexp.config.rules import check_at_least, check_choice
from geexp.config.schema import AnalyzeConfig

# The keys that only some analyses know.
_OWN_KEYS = {
    "selectivity": ("stage", "blocks", "images", "split"),
    "pruning": ("blocks", "ratios", "images", "split"),
    "receptive_field": ("blocks", "images", "split"),
    "gates": ("images", "split"),
    "curves": (),
}
ANALYSES = tuple(_OWN_KEYS)
# By default how many images, where not all: a mean that has settled by then, and a backward pass for each of them.
IMAGES = {"receptive_field": 256}
_USUAL = {"stage": None, "blocks": None, "ratios": None, "images": None, "split": "val"}


def check_analyze(config: AnalyzeConfig) -> None:
    check_choice("analysis", config.analysis, ANALYSES)
    if not config.run:
        raise ConfigError(f"say of which run: analysis={config.analysis} run=<a run's folder>.")
    check_choice("which", config.which, ("best", "last"))
    check_choice("split", config.split, ("val", "train"))
    check_choice("accelerator", config.accelerator, ("auto", "cpu", "gpu"))
    check_choice("format", config.format, ("text", "json"))
    check_at_least("devices", config.devices, 1)
    if config.workers is not None:
        check_at_least("workers", config.workers, 0)
    if config.images is not None:
        check_at_least("images", config.images, 1)
    for key, usual in _USUAL.items():
        value = getattr(config, key)
        if value != usual and key not in _OWN_KEYS[config.analysis]:
            knowing = [name for name, keys in _OWN_KEYS.items() if key in keys]
            raise ConfigError(f"{key}={value}: analysis={config.analysis} has no use for it, only {_either(knowing)}.")
    if config.stage is not None and config.blocks is not None:
        raise ConfigError(f"stage={config.stage} and blocks={config.blocks} both say where: give one of the two.")
    if config.stage is not None:
        check_choice("stage", config.stage, (2, 3, 4, 5))
    for name in config.blocks or ():
        if not re.fullmatch(r"conv[2-5]_\d+", name):
            raise ConfigError(f"blocks={config.blocks}: {name!r} is no block; they are called conv4_1 and so on.")
    if config.blocks is not None and not config.blocks:
        raise ConfigError("blocks=[]: no block is left to look at; null means the paper's choice.")
    if config.ratios is not None and not (config.ratios and all(0 <= ratio <= 1 for ratio in config.ratios)):
        raise ConfigError(f"ratios={config.ratios}: a list of numbers from 0 to 1, as in [0,0.5,1].")


def _either(names: list[str]) -> str:
    return " or ".join(names)
