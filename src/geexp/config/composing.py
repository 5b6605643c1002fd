"""A configuration of ``conf/`` outside of a command line, as the library and the report need it."""

from functools import cache

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from geexp.config.command import config_directory
from geexp.config.schema import TrainConfig
from geexp.config.validation import validated


@cache
def composed_training(*overrides: str) -> TrainConfig:
    """What ``python -m geexp.train <overrides>`` would train. It takes a tenth of a second; treat it as read-only.

    Raises:
        ConfigError: as the command would.
    """
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    command = GlobalHydra.instance().hydra  # of the command that we may be in
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_directory(), version_base="1.3"):
            return validated(TrainConfig, compose("train", overrides=list(overrides)))
    finally:
        GlobalHydra.instance().hydra = command
