"""Signals that ask a training to stop: noted while it trains, obeyed where nothing is lost."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from geexp.config.errors import INTERRUPTED, PREEMPTED
from geexp.config.ranks import rank

_NOTED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(SystemExit):
    """The end of a process that was asked to stop: by a cluster that wants its machine back, or by Ctrl-C."""

    def __init__(self, signum: int) -> None:
        by_user = signum == signal.SIGINT
        super().__init__(INTERRUPTED if by_user else PREEMPTED)
        self.signum = signum
        self.state = "interrupted" if by_user else "preempted"

    def __str__(self) -> str:
        return "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name


class StopSignals:
    """While entered, takes SIGTERM, SIGUSR1 (clusters' warnings) and SIGINT (Ctrl-C).

    While ``training`` the signal is kept in ``received`` for the training to find; at other times there is nothing to
    save, and it ends the process at once. So does a second Ctrl-C.
    """

    def __init__(self) -> None:
        self.received = 0
        self.training = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            for signum in _NOTED:
                if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
                    self._before[signum] = signal.getsignal(signum)
            if rank() == 0:
                self.take()
            else:  # waits for the first one to begin in a place where no handler of Python is called
                for number in self._before:
                    signal.signal(number, signal.SIG_DFL)
        return self

    def take(self) -> None:
        """Become the handler; once more after somebody else has put one in front."""
        for signum in self._before:
            signal.signal(signum, self._note)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        again = bool(self.received)
        if os.getpid() != self._process:  # a worker that was forked: a signal to all is meant for whom it feeds
            if again and signum == signal.SIGTERM:
                os._exit(128 + signum)
            self.received = signum
            return
        if again and signum != signal.SIGINT:
            return
        self.received = signum
        if again or not self.training:
            raise KeyboardInterrupt if signum == signal.SIGINT else Stopped(signum)
        if rank() != 0:
            return
        hint = "; Ctrl-C once more stops at once" if signum == signal.SIGINT else ""
        print(f"\n{Stopped(signum)}: stopping after this step, with a checkpoint{hint}", file=sys.stderr, flush=True)
