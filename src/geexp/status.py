"""``python -m geexp.status``: the progress of a run or of all runs of a sweep."""

from omegaconf import DictConfig

from geexp.config.command import sweep_command
from geexp.config.process import PlainConsole
from geexp.config.schema import TrainConfig
from geexp.launching.jobs import SweepJob
from geexp.launching.live_table import status
from geexp.runs.job import register_resolvers


@sweep_command("status", TrainConfig, schema_name="train_schema", prepare=register_resolvers)
def main(jobs: list[SweepJob], composed: DictConfig) -> None:
    status(jobs, PlainConsole())


if __name__ == "__main__":
    main()
