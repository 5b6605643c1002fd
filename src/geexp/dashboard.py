"""``python -m geexp.dashboard``: a W&B report of a sweep's runs beside the paper's numbers."""

import re
import sys
from pathlib import Path

from geexp.config.command import command
from geexp.config.errors import ConfigError, DataError
from geexp.config.extras import require_extras
from geexp.config.schema import DashboardConfig


def main() -> None:
    # Hydra would interpret sweep= as an option of conf/sweep, whose files hold training settings.
    sys.argv[1:] = [re.sub(r"^\+?sweep=", "name=", argument) for argument in sys.argv[1:]]
    _main()


@command("dashboard", DashboardConfig)
def _main(config: DashboardConfig) -> None:
    assert config.name is not None
    require_extras("geexp.dashboard", "dashboard", "report")
    if config.runs is not None and not Path(config.runs).is_dir():
        raise ConfigError(f"runs={config.runs}: no such folder.")
    import wandb

    from geexp.report.dashboard import make_dashboard, write_specification
    from geexp.report.measured import Runs
    from geexp.report.runs import read_runs
    from geexp.report.wandb_runs import logged_in_api, read_wandb

    api = None if config.dry_run else logged_in_api()
    try:
        entity = config.entity or (api.default_entity if api is not None else "")
        runs = read_runs(Path(config.runs))[0] if config.runs is not None else []
        if api is not None and config.runs is None:
            runs, _ = read_wandb(f"{entity}/{config.project}", api)
        report = make_dashboard(config.name, entity=entity, project=config.project, runs=Runs(runs))
        if config.dry_run:
            path = Path(config.out or f"dashboard-{config.name}.json")
            write_specification(report, path)
            print(path)
        else:
            print(report.save().url)
    except wandb.errors.Error as error:
        raise DataError(f"W&B: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    main()
