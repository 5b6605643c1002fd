"""``python -m geexp.report``: finished runs side by side."""

from pathlib import Path

from geexp.config.command import command
from geexp.config.errors import ConfigError
from geexp.config.schema import ReportConfig


@command("report", ReportConfig)
def main(config: ReportConfig) -> None:
    folder = Path(config.runs).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"runs={config.runs}: there is no such folder.")
    from geexp.results.comparison import compare_runs, finished_runs

    out = Path(config.out).expanduser() if config.out else folder
    compare_runs(finished_runs(folder), out=out, format=config.format)


if __name__ == "__main__":
    main()
