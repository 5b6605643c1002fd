"""``python -m geexp.plan``: trainings, GPU-hours, disk and date of a sweep, before anyone starts it."""

from geexp.config.command import command
from geexp.config.schema import PlanConfig


@command("plan", PlanConfig, sweeps=True, schema_name="train_schema")
def main(config: PlanConfig) -> None:
    raise AssertionError("geexp.launching.hydra_side.ShowBudget ends the process before there is a job")


if __name__ == "__main__":
    main()
