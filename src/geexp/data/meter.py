"""How far a long walk through many images has come: a bar on a terminal, otherwise a line in the log now and then."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0


@contextmanager
def meter(what: str, total: int, done: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Gives ``advance(images, bytes)``. ``done`` of the ``total`` images need no work any more."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    on_terminal = sys.stderr.isatty()
    start = said = time.monotonic()
    images = size = 0

    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not on_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done, speed="")

        def advance(more_images: int, more_bytes: int) -> None:
            nonlocal images, size, said
            images, size, now = images + more_images, size + more_bytes, time.monotonic()
            rate = images / max(now - start, 1e-9)
            speed = f"{rate:,.0f} images/s, {decimal(size)}"
            bar.update(task, completed=done + images, speed=speed)
            if not on_terminal and now - said >= _EVERY_SECONDS:
                said = now
                left = (total - done - images) / max(rate, 1e-9)
                log.info("%s: %d of %d, %s, %.0f s left", what, done + images, total, speed, left)

        yield advance
