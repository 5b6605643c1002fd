"""What a sweep costs: device-hours, the date of its end, and disk."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from geexp.config.errors import ConfigError
from geexp.config.schema import HardwareConfig, TrainConfig
from geexp.launching.cost import gmacs_of_an_image, images_of_an_epoch, images_to_see
from geexp.launching.plan import Row, in_words, summary
from geexp.launching.progress import DONE
from geexp.runs.run_files import read_result

FLOPS_PER_MAC = 6  # a forward pass, and a backward pass twice as long
# Weights and momentum in 32 bits; best.ckpt, last.ckpt and previous.ckpt.
_BYTES_PER_PARAMETER = 2 * 4 * 3


@dataclass(frozen=True)
class Estimate:
    """Of one job that is to be trained: hours on its devices, and whether a finished run has measured its speed."""

    row: Row
    hours: float
    measured: bool
    disk: int

    @property
    def devices(self) -> int:
        return self.row.job.config.trainer.devices * self.row.job.config.trainer.nodes


@dataclass
class Budget:
    """Of all jobs that are to be trained; ``hours`` until the last of them ends."""

    estimates: list[Estimate] = field(default_factory=list)
    hours: float = 0.0

    @property
    def device_hours(self) -> float:
        return sum(estimate.hours * estimate.devices for estimate in self.estimates)

    @property
    def disk(self) -> int:
        return sum(estimate.disk for estimate in self.estimates)


def budget(rows: Sequence[Row], hardware: HardwareConfig) -> Budget:
    """Estimate every job that the plan has to train, and share the devices out as the launcher does.

    Raises:
        ConfigError: for hardware that a job does not fit on.
    """
    speeds = measured_speeds(rows)
    estimates = [estimate(row, hardware, speeds.get(_speed_key(row.job.config))) for row in rows if row.to_train]
    for one in estimates:
        if one.devices > hardware.devices:
            raise ConfigError(
                f"hardware.devices={hardware.devices}: {one.row.label} wants {one.devices} devices "
                "(trainer.devices x trainer.nodes)."
            )
    return Budget(estimates, _makespan(estimates, hardware.devices))


def estimate(row: Row, hardware: HardwareConfig, measured: float | None = None) -> Estimate:
    """``measured``: images a second on one device that a finished run of this network has seen."""
    config, progress = row.job.config, row.progress
    devices = config.trainer.devices * config.trainer.nodes
    stated = hardware.tflops * 1e12 / (FLOPS_PER_MAC * gmacs_of_an_image(config) * 1e9)
    speed = measured or min(stated, hardware.images_per_second)
    left = images_to_see(config)
    if progress.epoch and not config.force:
        left = max(0, left - progress.epoch * images_of_an_epoch(config))
    hours, disk = left / (speed * devices) / 3600, _parameters(config) * _BYTES_PER_PARAMETER
    return Estimate(row, hours, measured is not None, disk)


def measured_speeds(rows: Sequence[Row]) -> dict[Any, float]:
    """Images a second of one device, validation included, by network and image size, from runs that are done."""
    speeds = {}
    for row in rows:
        result = read_result(row.job.folder) if row.progress.state == DONE else None
        if result is not None and result["seconds"] > 0:
            images = images_of_an_epoch(row.job.config) * result["epochs"]
            speeds[_speed_key(row.job.config)] = images / result["seconds"] / result["devices"]["count"]
    return speeds


def show_budget(rows: Sequence[Row], hardware: HardwareConfig, console: Console) -> None:
    """Print what each row costs, and the sum."""
    total = budget(rows, hardware)
    by_row = {id(one.row): one for one in total.estimates}
    table = Table("row", "state")
    for name in ("devices", "hours", "disk"):
        table.add_column(name, justify="right")
    for row in rows:
        one = by_row.get(id(row))
        cells: tuple[str, ...] = ()
        if one is not None:
            cells = str(one.devices), f"{'' if one.measured else '~ '}{one.hours:.1f}", size(one.disk)
        table.add_row(row.label, in_words(row), *cells)
    console.print(table)
    console.print(summary(rows))
    end = datetime.now() + timedelta(hours=total.hours)
    console.print(
        f"{total.device_hours:,.0f} device-hours, {total.hours:,.0f} hours on {hardware.devices} "
        f"{'device' if hardware.devices == 1 else 'devices'}: if started now, done by {end:%Y-%m-%d %H:%M}. "
        f"{size(total.disk)} of checkpoints.",
        highlight=False,
        soft_wrap=True,
    )
    if not all(one.measured for one in total.estimates):
        console.print(
            f"~ from stated speeds, not measured: {hardware.tflops:g} TFLOP/s, at most {hardware.images_per_second:g} "
            "images/s a device (hardware.tflops, hardware.images_per_second); a plateau may come earlier.",
            highlight=False,
            soft_wrap=True,
        )


def size(number: float) -> str:
    """``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _makespan(estimates: Sequence[Estimate], devices: int) -> float:
    """Longest first, a freed device takes the next job that fits."""
    free, now = devices, 0.0
    waiting = sorted(estimates, key=lambda one: -one.hours)
    running: list[tuple[float, int]] = []
    while waiting or running:
        for one in list(waiting):
            if one.devices <= free:
                waiting.remove(one)
                free -= one.devices
                heapq.heappush(running, (now + one.hours, one.devices))
        now, freed = heapq.heappop(running)
        free += freed
    return now


def _speed_key(config: TrainConfig) -> Any:
    return config.model.name, config.ge.variant, str(config.ge.extent), config.data.name, config.data.image_size


def _parameters(config: TrainConfig) -> int:
    from geexp.training.network import count_run

    return count_run(config).total.params
