"""Work by threads with results in order, and the progress bars of long waits."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from geexp.config.process import PlainConsole
from geexp.config.ranks import rank

T = TypeVar("T")
log = logging.getLogger(__name__)

# The environment variable in which a launcher tells a job how many processors it has, beside other jobs.
SHARE = "GEEXP_PROCESSORS"
_LOG_EVERY = 60.0  # seconds
_TASKS_AHEAD = 2  # of each thread


def processors() -> int:
    """How many processors this process may use: all that the system lets it, or a launcher's share of them."""
    if SHARE in os.environ:
        return int(os.environ[SHARE])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[range], T], indices: range, *, step: int, threads: int) -> Iterator[tuple[range, T]]:
    """``work`` on ``step`` indices at a time by threads; yields each part with its result, in order."""
    with ThreadPoolExecutor(threads, thread_name_prefix=work.__name__) as pool:
        parts = (indices[start : start + step] for start in range(0, len(indices), step))
        tasks = ((part, pool.submit(work, part)) for part in parts)
        try:
            for part, task in read_ahead(tasks, threads * _TASKS_AHEAD):
                yield part, task.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def read_ahead(items: Iterable[T], number: int) -> Iterator[T]:
    """The items, ``number`` of them drawn ahead of the one in use."""
    drawn: deque[T] = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) > number:
            yield drawn.popleft()
    while drawn:
        yield drawn.popleft()


def bars_are_shown() -> bool:
    """Whether this process shows progress bars: on rank 0, if standard error is a terminal."""
    return rank() == 0 and sys.stderr.isatty()


def with_bar(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar if ``bars_are_shown``, gone afterwards. ``total`` defaults to their length.

    Without a length the bar shows only that work goes on.
    """
    console, hidden = PlainConsole(stderr=True), not bars_are_shown()
    yield from track(items, escape(what), total=total, console=console, transient=True, disable=hidden)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner for a wait without countable parts, under the same conditions."""
    with PlainConsole(stderr=True).status(escape(what)) if bars_are_shown() else nullcontext():
        yield


@contextmanager
def meter(what: str, total: int, done: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Gives ``advance(images, bytes)``: a bar on a terminal, otherwise a log line now and then.

    ``done`` of the ``total`` images need no more work.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    on_terminal = bars_are_shown()
    start = logged = time.monotonic()
    images = size = 0

    with Progress(*columns, console=PlainConsole(stderr=True), transient=True, disable=not on_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done, speed="")

        def advance(more_images: int, more_bytes: int) -> None:
            nonlocal images, size, logged
            images, size, now = images + more_images, size + more_bytes, time.monotonic()
            rate = images / max(now - start, 1e-9)
            speed = f"{rate:,.0f} images/s, {decimal(size)}"
            bar.update(task, completed=done + images, speed=speed)
            if not on_terminal and now - logged >= _LOG_EVERY:
                logged = now
                left = (total - done - images) / max(rate, 1e-9)
                log.info("%s: %d of %d, %s, %.0f s left", what, done + images, total, speed, left)

        yield advance
