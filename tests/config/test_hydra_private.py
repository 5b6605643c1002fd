"""Names of Hydra beside its documented interface: whatever it moves, a sentence here names it."""

import argparse

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra

from geexp.config import hydra_private
from geexp.config.compose import composed_training


def test_another_configuration_can_be_composed_while_a_command_runs():
    instance = GlobalHydra.instance()
    assert hasattr(instance, "hydra"), "Hydra has moved GlobalHydra.hydra: see hydra_private.outside_of_a_command"
    running = object()
    instance.hydra = running
    try:
        composed_training("seed=12345")
        assert GlobalHydra.instance().hydra is running, "Hydra keeps the running command elsewhere than in .hydra"
    finally:
        instance.clear()


@pytest.mark.parametrize(
    ("begins", "arguments"),
    [
        ("M_WITH_CFG", ["-m", "--cfg", "job"]),
        ("GROUP_NEEDS_A_NAME", ["ge=null"]),
    ],
)
def test_hydra_words_its_errors_as_before(run, begins, arguments):
    done = run("train", *arguments)
    assert "Traceback" not in done.stderr, (
        f"Hydra no longer begins this error with {getattr(hydra_private, begins)!r}: "
        f"change hydra_private.{begins}. It says: {done.stderr.splitlines()[-1]}"
    )
    assert done.returncode == 2


def test_the_parser_of_the_command_line_takes_flags_anywhere():
    parsed = hydra_private.args_parser().parse_intermixed_args(["a=1", "-m", "b=2", "--config-dir", "c"])
    assert parsed.overrides == ["a=1", "b=2"], "Hydra's parser has changed: see config.arguments.flags_first"


def test_hydras_parser_can_be_created_where_argparse_checks_each_help(monkeypatch):
    """As Python 3.14 does."""
    container = argparse._ActionsContainer
    if not hasattr(container, "_check_help"):
        add_argument = container.add_argument

        def check_help(self, action):
            if action.help and hasattr(self, "_get_formatter"):
                self._get_formatter()._expand_help(action)

        def checked(self, *args, **kwargs):
            action = add_argument(self, *args, **kwargs)
            self._check_help(action)
            return action

        monkeypatch.setattr(container, "_check_help", check_help, raising=False)
        monkeypatch.setattr(container, "add_argument", checked)
    check = container._check_help
    with hydra_private.help_need_not_be_text():
        get_args_parser()
        with pytest.raises(ValueError, match="format"):
            argparse.ArgumentParser().add_argument("--flag", help="100%")
    assert container._check_help is check
