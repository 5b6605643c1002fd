"""The progress of a sweep on the terminal: a live table, or one line per event where there is no terminal."""

import signal
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from geexp.launching.jobs import SweepJob
from geexp.launching.plan import DONE, FAILED, RUNNING, Progress, Row, plan

_REDRAW_EVERY = 1.0  # seconds
_COLOURS = {DONE: "green", RUNNING: "bold", FAILED: "red"}


class LiveTable:
    """Context manager that shows the rows of a sweep on ``console``."""

    def __init__(self, rows: Sequence[Row], console: Console) -> None:
        self.rows, self.console = rows, console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._drawn = 0.0
        self._shown_epochs: dict[int, int] = {}

    def __enter__(self) -> "LiveTable":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, row: Row, text: str) -> None:
        """Print a permanent line about a row."""
        self.console.print(f"{row.label}: {text}", highlight=False, soft_wrap=True)

    def stopping(self, signum: int, jobs: int, grace: float) -> None:
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        what = f"{jobs} running {'job writes its checkpoint' if jobs == 1 else 'jobs write their checkpoints'}"
        hint = f"for {grace:g} s at most; press Ctrl-C again to kill them"
        self.console.print(f"{name}: {what}, {hint}", highlight=False, soft_wrap=True)

    def update(self) -> None:
        """Redraw, at most once a second; without a terminal, print a line for every finished epoch."""
        if time.monotonic() - self._drawn < _REDRAW_EVERY:
            return
        self._drawn = time.monotonic()
        if self._live is not None:
            self._live.update(table_of(self.rows), refresh=True)
            return
        for row in self.rows:
            if row.progress.state == RUNNING:
                if row.progress.epoch > self._shown_epochs.get(row.job.number, row.progress.epoch):
                    epoch, error, _, left = _numbers(row.progress)
                    told = (f"epoch {epoch}", f"top-1 error {error}" if error else "", f"{left} left" if left else "")
                    self.note(row, ", ".join(filter(None, told)))
                self._shown_epochs[row.job.number] = row.progress.epoch


def table_of(rows: Sequence[Row]) -> Table:
    """A table of the rows with their states, epochs, errors and time left."""
    table = Table()
    for heading in ("row", "state"):
        table.add_column(heading, overflow="fold")
    for heading in ("epoch", "top-1 error", "best", "left", "on"):
        table.add_column(heading, justify="right")
    for row in rows:
        progress = row.progress if row.same_as is None else row.same_as.progress
        state = f"the same as {row.same_as.label}" if row.same_as is not None else progress.briefly()
        colour = _COLOURS.get(progress.state, "")
        table.add_row(row.label, Text(state, colour), *_numbers(progress), progress.where)
    return table


def _numbers(progress: Progress) -> tuple[str, str, str, str]:
    """Epoch, last and best error, and time left, as text; empty if unknown."""
    of = f"/{progress.epochs}" if progress.epochs else ""
    error, best = (f"{error:.2f} %" if error is not None else "" for error in (progress.error, progress.best))
    left = str(timedelta(seconds=round(progress.eta))) if progress.eta is not None else ""
    return f"{progress.epoch}{of}" if progress.epoch else "", error, best, left


def status(jobs: Sequence[SweepJob], console: Console) -> None:
    """Print the progress of these jobs for ``geexp.status``, read from their folders."""
    rows = plan(jobs)
    console.print(table_of(rows))
    own = [row for row in rows if row.same_as is None]
    for row in own:
        if row.progress.reason and row.progress.state != DONE:
            console.print(f"{row.label}: {row.progress}", highlight=False, soft_wrap=True)
    console.print(f"{sum(row.progress.state == DONE for row in own)} of {len(own)} done", highlight=False)
