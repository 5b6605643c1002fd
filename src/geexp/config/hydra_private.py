"""All that geexp uses of Hydra beside its documented interface, in one place. ``tests/config/test_hydra_private.py``
fails when Hydra moves any of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra

# How the ValueErrors begin that Hydra raises for command lines which make no sense.
M_WITH_CFG = "Only one of --run, --multirun, --cfg"
GROUP_NEEDS_A_NAME = "Config group override must be"


@contextmanager
def outside_of_a_command() -> Iterator[None]:
    """Let another configuration be composed while a command runs: Hydra knows one at a time."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running
