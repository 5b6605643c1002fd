"""All undocumented parts of Hydra that geexp uses; ``tests/config/test_hydra_private.py`` fails if one changes."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra._internal.utils import get_args_parser as args_parser
from hydra.core.global_hydra import GlobalHydra

__all__ = ["GROUP_NEEDS_A_NAME", "M_WITH_CFG", "SWEEP_WITHOUT_M", "args_parser", "outside_of_a_command"]

# The first words of Hydra's errors for invalid command lines; of the last one as a pattern, with the argument.
M_WITH_CFG = "Only one of --run, --multirun, --cfg"
GROUP_NEEDS_A_NAME = "Config group override must be"
SWEEP_WITHOUT_M = "Ambiguous value for argument '(.*)'"


@contextmanager
def outside_of_a_command() -> Iterator[None]:
    """Make it possible to compose another configuration while a command runs; Hydra supports one at a time."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running
