"""What a run is called at W&B: by its preset, or by its network, data and schedule, and what else was chosen for it."""

from textwrap import shorten

from hydra.core.hydra_config import HydraConfig

from geexp.config.labels import ge_label, model_label
from geexp.config.schema import TrainConfig
from geexp.runs.identity import data_slug, effective_ge

# Groups that neither the network's name nor the preset's tells.
_GROUPS = ("optim", "debug", "data/augmentation", "callbacks", "scale")
# Keys that the label has in its own words.
_IN_THE_LABEL = ("ge.", "model.name", "data.name")


def network_label(config: TrainConfig) -> str:
    """``ResNet-50 GE-θ``."""
    model = config.model.label or model_label(config.model.name)
    return f"{model} {ge_label(effective_ge(config.ge, config.model), config.ge.label)}"


def run_label(config: TrainConfig) -> str:
    """``table2_theta`` for a run of a preset; else ``ResNet-50 GE-θ, imagenet, plateau``. Behind it the overrides that
    make it another run, as in ``…, optim.lr=0.2``; the seed is not among them."""
    preset = _experiment()
    start = [preset] if preset else [network_label(config), data_slug(config), config.schedule.name]
    return ", ".join([*start, *_overrides(preset)])


def run_name(config: TrainConfig) -> str:
    """The label, cut if it is longer than W&B takes, and the seed."""
    return f"{shorten(run_label(config), 100, placeholder=' …')}, seed {config.seed}"


def run_tags(config: TrainConfig) -> list[str]:
    """The preset, unless overrides make it another training; the variant of GE and the data."""
    preset = _experiment()
    named = [preset] if preset and not _overrides(preset) else []
    return [*named, config.ge.variant, data_slug(config)]


def _experiment() -> str | None:
    if not HydraConfig.initialized():
        return None
    return HydraConfig.get().runtime.choices.get("experiment")


def _overrides(preset: str | None) -> list[str]:
    """Those of the command line that change what is trained."""
    if not HydraConfig.initialized():
        return []
    told = ("model", "ge", "extent", "placement", "data", "schedule") if preset else ()
    words = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
    kept = []
    for word in words:
        key = word.partition("=")[0]
        in_label = not preset and key.startswith(_IN_THE_LABEL)
        if key in (*_GROUPS, *told) or (key.startswith(_DETERMINING) and not in_label):
            kept.append(word)
    return kept


_DETERMINING = ("model.", "ge.", "data.", "schedule.", "optim.", "trainer.", "detector.", "callbacks.")
