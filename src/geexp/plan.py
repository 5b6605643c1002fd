"""``python -m geexp.plan``: runs, device-hours, disk space and finishing date of a sweep, before it starts."""

from dataclasses import dataclass, field

from omegaconf import DictConfig

from geexp.config.command import sweep_command
from geexp.config.compose import validated
from geexp.config.process import PlainConsole
from geexp.config.schema import HardwareConfig, PlanConfig
from geexp.launching.budget import budget, show_budget
from geexp.launching.jobs import SweepJob
from geexp.launching.plan import plan
from geexp.runs.job import register_resolvers


@dataclass
class _Stated:
    hardware: HardwareConfig = field(default_factory=HardwareConfig)


@sweep_command("plan", PlanConfig, schema_name="train_schema", prepare=register_resolvers)
def main(jobs: list[SweepJob], composed: DictConfig) -> None:
    hardware = validated(_Stated, {"hardware": composed.hardware}).hardware
    rows = plan(jobs)
    show_budget(rows, budget(rows, hardware), hardware, PlainConsole())


if __name__ == "__main__":
    main()
