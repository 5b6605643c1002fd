"""How far a long measurement has come: a bar on a terminal, otherwise nothing, and no thread beside the measuring."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

Advance = Callable[[], None]


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    on_terminal = sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=not on_terminal, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)

        def advance() -> None:
            bar.update(task, advance=1)
            bar.refresh()

        yield advance
