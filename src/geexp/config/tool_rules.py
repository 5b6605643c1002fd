"""What the configurations of the other commands must fulfil: those that evaluate, show, pack, check and measure."""

import re

from geexp.config.catalog import DATASETS
from geexp.config.errors import ConfigError
from geexp.config.rules import (
    check_at_least,
    check_choice,
    check_data,
    check_feed,
    check_ge,
    check_model,
)
from geexp.config.schema import (
    CheckDataConfig,
    ComplexityConfig,
    DashboardConfig,
    DetectConfig,
    EvaluateConfig,
    PackConfig,
    ReportConfig,
)


def check_complexity(config: ComplexityConfig) -> None:
    check_model(config.model)
    check_ge(config.ge, config.model)
    if config.table is not None:
        check_choice("table", config.table, (1, 2, 3, 4))
        for key, usual in (("image_size", None), ("num_classes", None), ("in_channels", 3)):
            if getattr(config, key) != usual:
                raise ConfigError(
                    f"{key}={getattr(config, key)}: a table has its own networks and setting; leave it out."
                )
    check_choice("format", config.format, ("text", "json"))
    for key in ("image_size", "num_classes"):
        if getattr(config, key) is not None:
            check_at_least(key, getattr(config, key), 1)
    check_at_least("in_channels", config.in_channels, 1)


def check_evaluate(config: EvaluateConfig) -> None:
    if bool(config.run) == bool(config.checkpoint):
        raise ConfigError("give one of the two: run=<a run's folder>, or checkpoint=<a .ckpt file>.")
    check_choice("which", config.which, ("best", "last"))
    check_choice("accelerator", config.accelerator, ("auto", "cpu", "gpu"))
    check_at_least("devices", config.devices, 1)
    if config.workers is not None:
        check_at_least("workers", config.workers, 0)
    check_choice("format", config.format, ("text", "json"))


def check_detect(config: DetectConfig) -> None:
    check_choice("mode", config.mode, ("train", "predict"))
    if not config.run:
        raise ConfigError("say of which detector: mode=predict run=<its run's folder>.")
    check_choice("which", config.which, ("best", "last"))
    check_at_least("most", config.most, 1)
    if not 0 <= config.least_score <= 1:
        raise ConfigError(f"least_score={config.least_score}: must be from 0 to 1.")
    check_choice("accelerator", config.accelerator, ("auto", "cpu", "gpu"))
    check_choice("format", config.format, ("text", "json"))


def check_report(config: ReportConfig) -> None:
    if config.table is not None:
        check_choice("table", config.table, tuple(range(1, 7)))
    for key in ("tables", "figures"):
        check_choice(key, getattr(config, key), ("all", "none"))
    if not config.runs:
        raise ConfigError("runs is empty: say in which folder the runs are, as in runs=outputs.")
    check_choice("format", config.format, ("text", "json"))


def check_dashboard(config: DashboardConfig) -> None:
    if config.name is None:
        raise ConfigError("say of which sweep, as in sweep=table2.")
    if not re.fullmatch(r"[\w.-]+", config.name):
        raise ConfigError(f"sweep={config.name}: must be the name of a sweep, as in sweep=table2.")
    if not config.project:
        raise ConfigError("project is empty: say which one at W&B, as in project=geexp.")
    if config.out is not None and not config.dry_run:
        raise ConfigError(f"out={config.out}: a file is written with dry_run=true only.")


def check_pack(config: PackConfig) -> None:
    if config.data.keep_classes is not None:
        raise ConfigError(
            f"data.keep_classes={config.data.keep_classes}: a pack has all the classes; say so in training, which then "
            "reads no more than their images. Leave it out here."
        )
    check_data(config.data)
    if not DATASETS[config.data.name]:
        raise ConfigError(
            f"data={config.data.name}: its images are small and lie in one file already; there is nothing to pack. "
            f"Train with feed={config.data.default_feed}."
        )
    check_choice("source", config.source, ("auto", "folders", "archives"))
    if config.workers is not None:
        check_at_least("workers", config.workers, 1)
    check_choice("on_error", config.on_error, ("stop", "skip"))
    check_choice("format", config.format, ("text", "json"))


def check_data_check(config: CheckDataConfig) -> None:
    check_data(config.data)
    check_feed(config.feed, config.data)
    if config.workers is not None:
        check_at_least("workers", config.workers, 1)
    check_choice("format", config.format, ("text", "json"))
