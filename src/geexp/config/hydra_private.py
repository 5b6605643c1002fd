"""All undocumented parts of Hydra that geexp uses; ``tests/config/test_hydra_private.py`` fails if one changes."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra

# The first words of Hydra's ValueErrors for invalid command lines.
M_WITH_CFG = "Only one of --run, --multirun, --cfg"
GROUP_NEEDS_A_NAME = "Config group override must be"


@contextmanager
def outside_of_a_command() -> Iterator[None]:
    """Make it possible to compose another configuration while a command runs; Hydra supports one at a time."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running
