"""A single run on several devices of this machine: ``python -m geexp.train trainer.devices=8`` starts its own ranks."""

import signal
import sys
import time
from collections.abc import Sequence

from geexp.config.errors import INTERRUPTED, PREEMPTED
from geexp.config.schema import LauncherConfig
from geexp.launching.devices import threads_of_each
from geexp.launching.process_tree import ProcessTree, noted_signals


def train_in_ranks(arguments: Sequence[str], *, devices: int, settings: LauncherConfig) -> None:
    """Train in one process per device, and end as they end. ``arguments`` are those of ``geexp.train``.

    Signals are passed on to the ranks, which stop with a checkpoint; after a second Ctrl-C, or ``settings.grace``
    seconds, they are killed.

    Raises:
        SystemExit: if they end with another exit code than 0, with that code; after a signal, with that of a run that
            was interrupted or preempted, however far it had come.
    """
    with noted_signals() as received:
        tree = ProcessTree(arguments, processes=devices, log=None, environment=threads_of_each(devices))
        deadline, told = float("inf"), False
        while (code := tree.poll()) is None:
            if received:
                if not told:  # they may be waiting for one another, where no handler is called yet
                    told = True
                    print(
                        f"\n{signal.Signals(received[0]).name}: {devices} processes stop with a checkpoint, within "
                        f"{settings.grace:g} s; Ctrl-C again kills them",
                        file=sys.stderr,
                    )
                tree.ask(received[0])
                deadline = min(deadline, time.monotonic() + settings.grace)
                if time.monotonic() > deadline or signal.SIGINT in received[1:]:
                    tree.kill()
            time.sleep(0.1)
    if code and received:
        sys.exit(INTERRUPTED if received[0] == signal.SIGINT else PREEMPTED)
    if code:
        sys.exit(code if code > 0 else 128 - code)
