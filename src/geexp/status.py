"""``python -m geexp.status``: how far the runs of a sweep, or one run, have come."""

from geexp.config.command import command
from geexp.config.schema import TrainConfig


@command("status", TrainConfig, sweeps=True, schema_name="train_schema")
def main(config: TrainConfig) -> None:
    raise AssertionError("geexp.launching.hydra_side.ShowStatus ends the process before there is a job")


if __name__ == "__main__":
    main()
