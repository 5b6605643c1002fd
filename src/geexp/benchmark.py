"""``python -m geexp.benchmark``: how fast the parts of geexp are on this machine, against what is demanded of them."""

import json
import sys
from pathlib import Path

from geexp.config.command import command
from geexp.config.errors import ConfigError
from geexp.config.schema import BenchmarkConfig


@command("benchmark", BenchmarkConfig)
def main(config: BenchmarkConfig) -> None:
    root = Path(config.root).expanduser() if config.root is not None else None
    if root is not None and not all((root / split).is_dir() for split in ("train", "val")):
        raise ConfigError(
            f"root={config.root}: needs the folders train and val, arranged as ImageNet's. Such a folder is made by "
            "scripts/make_photo_folder.py; with root=null the benchmark makes one of its own."
        )
    from rich.console import Console

    from geexp.benchmarks.feed_report import as_document, print_tables
    from geexp.benchmarks.feeds import benchmark_feeds
    from geexp.records.whole_file import whole_file

    report = benchmark_feeds(config)
    document = as_document(report, config)
    out = Path(config.out).expanduser()
    with whole_file(out) as file:
        file.write(json.dumps(document, indent=2).encode() + b"\n")
    if config.format == "json":
        print(json.dumps(document))
    else:
        print_tables(report, Console())
    print(f"written to {out.absolute()}", file=sys.stderr)


if __name__ == "__main__":
    main()
