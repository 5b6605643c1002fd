"""The cost of a sweep: device-hours, finishing date and disk space, from configurations and finished runs."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from geexp.config.class_folders import is_there, list_folder, walk_folders
from geexp.config.errors import ConfigError
from geexp.config.protocol import stretched
from geexp.config.schema import HardwareConfig, TrainConfig
from geexp.data.parallel import with_bar
from geexp.launching.plan import DONE, Row, in_words, summary
from geexp.runs.run import Run

FLOPS_PER_MAC = 6  # 2 for the forward pass, 4 for the backward pass
# Weights and momentum in 32 bits; best.ckpt, last.ckpt and previous.ckpt.
_BYTES_PER_PARAMETER = 2 * 4 * 3
# The box head of an FPN detector: 7x7x256 → 1024 → 1024.
_TWO_LAYERS = (7 * 7 * 256 + 1024) * 1024 / 1e9


def cost(config: TrainConfig) -> float | None:
    """GMACs of all forward passes on each device of the job; None if the number of images is unknown."""
    images = images_to_see(config)
    if images is None:
        return None
    return images * gmacs_per_image(config) / (config.trainer.devices * config.trainer.nodes)


def images_to_see(config: TrainConfig) -> int | None:
    """The maximal number of training images over all epochs; a plateau schedule may end earlier."""
    schedule = stretched(config.schedule)
    if schedule.iterations is not None:
        return schedule.iterations * config.optim.batch_size
    images = images_per_epoch(config)
    return images and (config.trainer.max_epochs or schedule.epochs or 1) * images


def images_per_epoch(config: TrainConfig) -> int | None:
    """The number of training images, with ``data.keep_classes`` applied.

    Files in class folders are counted; None if the data set has neither a stated number nor folders.
    """
    data = config.data
    images = data.training_images
    if images is None and data.kind == "files" and data.root is not None:
        images = _files_below(Path(data.root) / "train") or None
    if images is None or data.keep_classes is None or data.total_classes is None:
        return images
    return images * data.keep_classes // data.total_classes


@cache
def _files_below(folder: Path) -> int:
    if not is_there(folder):
        return 0
    walk = walk_folders(list_folder(folder))
    return sum(len(found.files) for found in with_bar(walk, f"counting the images in {folder}"))


def gmacs_per_image(config: TrainConfig) -> float:
    """GMACs of the network's forward pass per image.

    If the backbone's count is known, GE is left out; it adds less than one per cent.
    """
    model = config.model
    if model.gmacs is None:
        return complexity(config).macs / 1e9
    if config.detects:
        return _gmacs_of_a_detector(config, model.gmacs)
    return model.gmacs * (config.data.image_size / model.home_size) ** 2


def _gmacs_of_a_detector(config: TrainConfig, gmacs: float) -> float:
    """GMACs of the backbone on a 4:3 image, typical of COCO, and of the box head on the training regions.

    The region proposal network and the convolutions of a pyramid are left out.
    """
    model, detector = config.model, config.detector
    pixels = detector.min_size * min(detector.max_size, detector.min_size * 4 / 3)
    scale = pixels / model.home_size**2
    if detector.layout == "fpn":
        return gmacs * scale + detector.regions * _TWO_LAYERS
    head = model.last_gmacs or 0.0  # counted on maps at stride 16
    per_region = head * (16 * detector.roi_size / model.home_size) ** 2
    return (gmacs - head) * scale + detector.regions * per_region


def complexity(config: TrainConfig) -> Any:
    """Count the parameters and MACs of the network."""
    from geexp.training.network import count_run

    return count_run(config).total


@dataclass(frozen=True)
class Estimate:
    """The cost of one job: hours on its devices (None: unknown), and bytes of checkpoints."""

    row: Row
    hours: float | None
    measured: bool
    disk: int

    @property
    def devices(self) -> int:
        return self.row.job.config.trainer.devices * self.row.job.config.trainer.nodes


@dataclass(frozen=True)
class Budget:
    """The cost of all jobs; ``hours`` until the last one ends. Jobs with unknown cost count as zero."""

    estimates: list[Estimate]
    hours: float

    @property
    def device_hours(self) -> float:
        return sum((estimate.hours or 0.0) * estimate.devices for estimate in self.estimates)


def budget(rows: Sequence[Row], hardware: HardwareConfig) -> Budget:
    """Estimate all jobs to be trained, with devices assigned as by the launcher.

    Raises:
        ConfigError: if a job needs more devices than the hardware has.
    """
    speeds = _measured_speeds(rows)
    todo = with_bar([row for row in rows if row.to_train], "estimating the jobs")
    estimates = [_estimate(row, hardware, speeds.get(_speed_key(row.job.config))) for row in todo]
    for one in estimates:
        if one.devices > hardware.devices:
            raise ConfigError(
                f"hardware.devices={hardware.devices}: {one.row.label} needs {one.devices} devices "
                "(trainer.devices x trainer.nodes)."
            )
    return Budget(estimates, _makespan(estimates, hardware.devices))


def _estimate(row: Row, hardware: HardwareConfig, measured: float | None) -> Estimate:
    """Estimate one job; ``measured`` is the images/s per device of a finished run of the same network."""
    config, hours = row.job.config, None
    left = images_to_see(config)
    if left is not None:
        if row.progress.epoch and not config.force:
            left = max(0, left - row.progress.epoch * (images_per_epoch(config) or 0))
        stated = hardware.tflops * 1e12 / (FLOPS_PER_MAC * gmacs_per_image(config) * 1e9)
        speed = measured or min(stated, hardware.images_per_second)
        hours = left / (speed * config.trainer.devices * config.trainer.nodes) / 3600
    return Estimate(row, hours, measured is not None, complexity(config).params * _BYTES_PER_PARAMETER)


def _measured_speeds(rows: Sequence[Row]) -> dict[Any, float]:
    """Images/s per device of finished runs, including validation, by network and image size."""
    speeds = {}
    for row in rows:
        result = Run(row.job.folder).result if row.progress.state == DONE else None
        images = images_per_epoch(row.job.config)
        if result is not None and result.seconds > 0 and images is not None:
            images_per_second = images * result.epochs / result.seconds
            speeds[_speed_key(row.job.config)] = images_per_second / result.devices["count"]
    return speeds


def _speed_key(config: TrainConfig) -> Any:
    return config.model.name, config.ge.variant, str(config.ge.extent), config.data.name, config.data.image_size


def _makespan(estimates: Sequence[Estimate], devices: int) -> float:
    """Hours until the last job ends, with the longest jobs first and free devices taking the next job that fits."""
    free, now = devices, 0.0
    waiting = sorted(estimates, key=lambda one: -(one.hours or 0.0))
    running: list[tuple[float, int]] = []
    while waiting or running:
        for one in list(waiting):
            if one.devices <= free:
                waiting.remove(one)
                free -= one.devices
                heapq.heappush(running, (now + (one.hours or 0.0), one.devices))
        now, freed = heapq.heappop(running)
        free += freed
    return now


def show_budget(rows: Sequence[Row], total: Budget, hardware: HardwareConfig, console: Console) -> None:
    """Print the cost of each row and the total."""
    by_row = {id(one.row): one for one in total.estimates}
    table = Table("row", "state")
    for name in ("devices", "hours", "disk"):
        table.add_column(name, justify="right")
    for row in rows:
        one = by_row.get(id(row))
        cells: tuple[str, ...] = ()
        if one is not None:
            hours = "?" if one.hours is None else f"{'' if one.measured else '~ '}{one.hours:.1f}"
            cells = str(one.devices), hours, decimal(one.disk)
        table.add_row(row.label, in_words(row), *cells)
    console.print(table)
    console.print(summary(rows))
    notes = []
    unknown = sum(one.hours is None for one in total.estimates)
    if len(total.estimates) > unknown or not total.estimates:
        end = datetime.now() + timedelta(hours=total.hours)
        notes.append(
            f"{total.device_hours:,.0f} device-hours, {total.hours:,.0f} hours on {hardware.devices} "
            f"{'device' if hardware.devices == 1 else 'devices'}: if started now, done by {end:%Y-%m-%d %H:%M}. "
            f"{decimal(sum(one.disk for one in total.estimates))} of checkpoints."
        )
    if unknown:
        notes.append(
            f"? unknown number of training images: the total excludes the hours of {unknown} of "
            f"{len(total.estimates)} trainings (set the number with data.training_images=<number>)."
        )
    if any(one.hours is not None and not one.measured for one in total.estimates):
        notes.append(
            f"~ from stated speeds, not measured: {hardware.tflops:g} TFLOP/s, at most {hardware.images_per_second:g} "
            "images/s per device (hardware.tflops, hardware.images_per_second); plateau schedules may end earlier."
        )
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)
