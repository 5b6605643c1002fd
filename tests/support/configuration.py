"""Configurations as ``geexp.train`` composes them, and the jobs that follow from them."""

from pathlib import Path

from geexp.config.compose import composed_training
from geexp.config.schema import DataConfig, TrainConfig
from geexp.runs.job import Job, make_job


def train_config(*overrides: str) -> TrainConfig:
    return composed_training(*overrides)


def data_config(*overrides: str) -> DataConfig:
    return train_config("feed=reference", *overrides).data


def job(folder: Path, *overrides: str) -> Job:
    """A training in ``folder``."""
    return make_job(train_config(*overrides), folder)
