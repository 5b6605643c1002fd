"""The words of a command line: Hydra's flags, and overrides in the grammar of Hydra. No torch."""

import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from geexp.config.constraints import expand_home
from geexp.config.errors import ConfigError
from geexp.config.hydra_private import args_parser


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The command line with the flags before the overrides, the only order that Hydra's parser accepts.

    A ``~`` at the start of a folder that Hydra itself reads or makes is expanded.

    Raises:
        ConfigError: for a word that ends with a carriage return, or ``~`` without a home folder.
        SystemExit: for unknown flags.
    """
    for word in arguments:
        if word.endswith("\r"):
            raise ConfigError(
                f"{word.rstrip()}: followed by a carriage return, which only a value in quotes may contain. It is the "
                r"line end of a script from Windows; convert the script with: sed -i 's/\r$//' <script>"
            )
    overrides: list[str] = args_parser().parse_intermixed_args(arguments).overrides
    flags = list(arguments)
    for word in overrides:
        flags.remove(word)
    flags = [_expanded(word, "(--config-dir=|-cd=|)") for word in flags]
    return flags + [_expanded(word, r"(\+*hydra\.(?:run|sweep)\.dir=[\"']?)") for word in overrides]


def _expanded(word: str, start: str) -> str:
    match = re.fullmatch(f"{start}(~.*)", word)
    return word if match is None else match[1] + expand_home(word.partition("=")[0], match[2])


def quoted_override(key: str, value: str) -> str:
    """``key=value``, with quotes and escapes if Hydra needs them; ``${…}`` remains a reference."""
    if _sets(f"{key}={value}", value):
        return f"{key}={value}"
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + match[2].replace('"', r"\""), value)
    return f'{key}="{escaped}"'


def _sets(word: str, value: str) -> bool:
    """Whether Hydra parses a word, and it sets its key to this string."""
    try:
        return bool(OverridesParser.create().parse_override(word).value() == value)
    except HydraException:
        return False


# Lists, dictionaries and functions.
_STRUCTURE = re.compile(
    r"\[.*\]|\{.*\}|(int|str|bool|float|json_str|choice|range|interval|tag|sort|shuffle|glob)\(.*\)", re.DOTALL
)


def refused_override(word: str, *, sweep: bool) -> ConfigError:
    """The error for a word that is not in Hydra's grammar, with the word to type instead where that is clear.

    With ``sweep`` commas separate values.
    """
    key, equals, value = word.partition("=")
    if not equals:
        return ConfigError(f"{word}: no value. Set a key with {word}=<value>.")
    values = value.split(",") if sweep else [value]
    words = [quoted_override(key, one) for one in values]
    broken_reference = "${" in value and not re.search(r"\$\{[^{}]+\}", value)
    if _STRUCTURE.fullmatch(value) or broken_reference or not all(map(_sets, words, values)):
        return ConfigError(
            f"{word}: not in Hydra's grammar for key=value. Quote the parts with special characters, as in "
            """'key="a=(b)"' or 'key=["a=(b)",c]'."""
        )
    mended = ",".join([words[0], *(one.removeprefix(f"{key}=") for one in words[1:])])
    return ConfigError(
        f"{word}: the value has characters that Hydra accepts only in quotes. With quotes for Hydra inside quotes for "
        f"the shell: {shlex.quote(mended)}"
    )


def several_values(word: str) -> ConfigError:
    """The error for a sweep without ``-m``."""
    key, _, value = word.partition("=")
    return ConfigError(
        f"{word}: several values of a key make a sweep: add -m, or give a single value. A list has brackets, "
        f"{key}=[{value}]; one value that contains commas is quoted: {shlex.quote(quoted_override(key, value))}"
    )


def failed_reference(key: str, reason: str, arguments: Sequence[str]) -> ConfigError:
    """The error for a reference, ``${…}``, to nothing: the word of the command line that contains it, or its key."""
    named = re.search("'(.*)'", reason)
    words = [word for word in arguments if "${" in word and named is not None and named[1] in word]
    return ConfigError(
        f"{next(iter(words), key)}: {reason}. ${{key}} refers to another key; a variable of the environment is "
        "${oc.env:HOME}, or ${oc.env:HOME,<default>}."
    )
