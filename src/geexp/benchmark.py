"""``python -m geexp.benchmark``: how fast the parts of geexp are on this machine, against what is demanded of them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from geexp.config.benchmark import (
    OperatorSettings,
    Settings,
    StartupSettings,
    StepSettings,
    TrainerSettings,
    settings_of,
)
from geexp.config.command import command
from geexp.config.errors import ConfigError
from geexp.config.schema import BenchmarkConfig

if TYPE_CHECKING:
    from geexp.benchmarks.rows import Comparison


@command("benchmark", BenchmarkConfig)
def main(config: BenchmarkConfig) -> None:
    root = Path(config.root).expanduser() if config.root is not None else None
    if root is not None and not all((root / split).is_dir() for split in ("train", "val")):
        raise ConfigError(
            f"root={config.root}: needs the folders train and val, arranged as ImageNet's. Such a folder is made by "
            "scripts/make_photo_folder.py; with root=null the benchmark makes one of its own."
        )
    from rich.console import Console

    from geexp.benchmarks.report import as_document, print_tables
    from geexp.runs.atomic_write import atomic_write

    settings = settings_of(config)
    found = _measure(settings)
    document = as_document(found, config.what, settings)
    out = Path(config.out).expanduser()
    with atomic_write(out) as file:
        file.write(json.dumps(document, indent=2).encode() + b"\n")
    if config.format == "json":
        print(json.dumps(document))
    else:
        print_tables(found, Console())
    print(f"written to {out.absolute()}", file=sys.stderr)


def _measure(settings: Settings) -> "Comparison":
    if isinstance(settings, OperatorSettings):
        from geexp.benchmarks.operators import benchmark_operators

        return benchmark_operators(settings)
    if isinstance(settings, StepSettings):
        from geexp.benchmarks.steps import benchmark_steps

        return benchmark_steps(settings)
    if isinstance(settings, TrainerSettings):
        from geexp.benchmarks.trainer_loop import benchmark_trainer

        return benchmark_trainer(settings)
    if isinstance(settings, StartupSettings):
        from geexp.benchmarks.startup import benchmark_startup

        return benchmark_startup(settings)
    from geexp.benchmarks.feeds import benchmark_feeds

    return benchmark_feeds(settings)


if __name__ == "__main__":
    main()
