"""Waiting for processes, and starting those that react to Ctrl-C however the tests themselves were started."""

import signal
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 300.0  # seconds: others work on this machine, too

T = TypeVar("T")


def default_sigint() -> None:
    """Reset SIGINT; for ``subprocess.Popen(…, preexec_fn=default_sigint)``.

    A shell starts background commands (``nohup``, ``&``) with SIGINT ignored, and children inherit that. Python
    raises KeyboardInterrupt only if it starts with the default action.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(found: Callable[[], T | None], patience: float = PATIENCE) -> T:
    """What ``found`` returns once that is something."""
    deadline = time.monotonic() + patience
    while not (value := found()):
        assert time.monotonic() < deadline, f"nothing came of {found}"
        time.sleep(0.05)
    return value
