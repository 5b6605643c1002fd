"""All undocumented parts of Hydra that geexp uses; ``tests/config/test_hydra_private.py`` fails if one changes."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def help_need_not_be_text() -> Iterator[None]:
    """Let Hydra create its parser on Python 3.14, whose argparse checks each option's help.

    The check fails for Hydra's --shell-completion, whose help is an object that becomes a text when it is printed.
    """
    container: Any = argparse._ActionsContainer
    check = getattr(container, "_check_help", None)
    if check is None:  # before 3.14
        yield
        return

    def check_text(self: argparse.ArgumentParser, action: argparse.Action) -> None:
        if isinstance(action.help, str):
            check(self, action)

    container._check_help = check_text
    try:
        yield
    finally:
        container._check_help = check
