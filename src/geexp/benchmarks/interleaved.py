"""A against B in one process: each round goes once through everything, so that other load falls on all alike.

On the CPU what counts is processor time of one thread, which a busy machine leaves comparable; on a GPU the time
between two CUDA events.
"""

import ctypes
import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

import psutil
import torch

from geexp.config.errors import ConfigError

# A kernel is shorter than what it takes to record two events around it; on the CPU one run of the work is long enough.
_RUNS_ON_A_GPU = 5


class Clock(Protocol):
    """Seconds that a piece of work takes."""

    def __call__(self, work: Callable[[], object]) -> float: ...


def clock_for(device: str) -> Clock:
    """The clock of a device, which is made ready for measuring with it.

    Raises:
        ConfigError: for ``cuda`` where there is none.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("device=cuda: this machine has no GPU that torch can use. Choose device=cpu.")
        return _cuda_seconds
    torch.set_num_threads(1)
    _keep_freed_memory()
    return _processor_seconds


def interleaved(
    works: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int,
    clock: Clock,
    advance: Callable[[], None],
) -> dict[str, list[float]]:
    """Seconds of every work in every round, after ``warm_up`` rounds that do not count.

    The order is drawn anew for each round: what runs after a small work finds more of its data in the cache.
    """
    order, dice = [*works], random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(-warm_up, rounds):
        dice.shuffle(order)
        for name in order:
            taken = clock(works[name])
            if round_ >= 0:
                seconds[name].append(taken)
        advance()
    return seconds


def _processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _cuda_seconds(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(_RUNS_ON_A_GPU):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / _RUNS_ON_A_GPU


# glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_POOL = 2**31


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed, with some gigabytes touched beforehand.

    By default it hands large blocks back to the system and gets them anew, empty: a page fault for every 4 KB, which
    takes several times as long as the arithmetic on it, and not for all contenders equally often.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        torch.empty(min(_POOL, psutil.virtual_memory().available // 4), dtype=torch.uint8).fill_(0)
