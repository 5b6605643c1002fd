"""Processor time and wall time of a piece of work, its worker processes counted."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Timing:
    """Seconds, and how many images the work was for."""

    processor: float
    wall: float
    images: int


def timed(work: Callable[[], int]) -> Timing:
    """Do the work, which returns how many images it was.

    Processor time is what a busy machine leaves comparable: that of all threads of this process, and of its children as
    far as they live on, as the workers of a feed do.
    """
    children = _children_seconds()
    wall, processor = time.perf_counter(), time.process_time()
    images = work()
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    return Timing(processor + _children_seconds() - children, wall, images)


def _children_seconds() -> float:
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(time.user + time.system for time in times)
