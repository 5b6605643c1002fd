"""Configurations as ``geexp.train`` would compose them."""

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from geexp.config.command import config_directory
from geexp.config.schema import DataConfig, TrainConfig
from geexp.config.validation import validated


def train_config(*overrides: str) -> TrainConfig:
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(config_directory(), version_base="1.3"):
        return validated(TrainConfig, compose("train", overrides=list(overrides)))


def data_config(*overrides: str) -> DataConfig:
    return train_config("feed=reference", *overrides).data
