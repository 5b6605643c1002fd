"""Progress bars: on a terminal for every long wait, gone afterwards, and nothing where there is no terminal."""

import io
import sys

import pytest

from geexp.data.images import MapStyleImages
from geexp.data.parallel import meter, waiting, with_bar
from geexp.launching.jobs import SweepJob
from geexp.launching.plan import plan
from geexp.report.measured import Runs
from geexp.report.report import report_table
from geexp.report.runs import read_runs
from tests.support.configuration import job
from tests.support.made_runs import paper_identity, write_run

ERASED = "\x1b[2K"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stderr(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> io.StringIO:
    """Standard error in its place; not as a fixture, since pytest sets its own before the test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def use_all() -> None:
    assert list(with_bar([1, 2, 3], "of a [list]")) == [1, 2, 3]
    assert list(with_bar(iter("ab"), "without a length")) == ["a", "b"]
    with meter("of images", 1) as advance:
        advance(1, 100)
    with waiting("something"):
        pass


def test_bars_are_shown_on_a_terminal_and_erased(monkeypatch):
    terminal = stderr(monkeypatch, Terminal())
    use_all()
    shown = terminal.getvalue()
    for what in ("of a [list]", "without a length", "of images", "something"):
        assert what in shown
    assert shown.rstrip().endswith(ERASED)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_without_a_terminal_and_on_other_ranks_nothing_is_shown(monkeypatch, rank):
    stream = stderr(monkeypatch, io.StringIO() if rank == "0" else Terminal())
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    use_all()
    assert stream.getvalue() == ""


def test_long_waits_have_one(monkeypatch, tmp_path):
    terminal = stderr(monkeypatch, Terminal())
    write_run(tmp_path / "run", paper_identity(2, 4), 22.0)
    read_runs(tmp_path)
    report_table("1", Runs([]), complexity=False)
    one = job(tmp_path / "other")
    plan([SweepJob(one.config, one.identity, one.folder, 0, ())])
    MapStyleImages([], "my.Images", 2)
    for what in ("reading the runs in", "counting the networks", "reading the runs of the jobs", "labels of my.Images"):
        assert what in terminal.getvalue()
