"""Errors for users; their messages name the key and value, what is allowed, and what to do."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches

# Exit codes beside 0 (done), 1 (failed) and 2 (wrong usage or configuration).
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h, "temporary failure": the same command resumes
INTERRUPTED = 130

# System errors of a disk that is full, broken or not writable.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(ValueError):
    """An error that the user can fix, shown as one paragraph without a traceback.

    ``state`` is the ``status.json`` state of a run that ends with this error.
    """

    exit_code = 1
    state = "failed"

    def __str__(self) -> str:
        # A DataLoader worker prepends its whole traceback; the message follows the last class name.
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class ConfigError(UserError):
    """A mistake in the configuration or on the command line."""

    exit_code = 2


class DataError(UserError):
    """A data set, image, checkpoint or folder that is missing, damaged or unsuitable."""


class TrainingError(UserError):
    """A training that cannot continue."""


class DivergedError(TrainingError):
    """A training whose loss or weights became NaN or infinite."""

    state = "diverged"


def causes(error: BaseException) -> list[BaseException]:
    """The exception and the chain of its causes, outermost first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def nearest(word: str, valid: Iterable[str]) -> str:
    """' Did you mean …?' with the valid words most similar to ``word``, or an empty string."""
    matches = get_close_matches(word, list(valid), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def bad_value(key: str, value: object, valid: Iterable[object], *, hint: str = "") -> ConfigError:
    """The error for a value that is not among the allowed ones."""
    words = [str(v) for v in valid]
    allowed = f"{nearest(str(value), words)} Allowed: {', '.join(words)}."
    return ConfigError(f"{key}={value}: not allowed.{allowed}" + (f" {hint}" if hint else ""))


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    """The error for a key that does not exist, with the nearest that do, among its siblings first."""
    known = list(known)
    parent, _, name = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent] if parent else []
    if siblings:
        guess = nearest(name, (k.rpartition(".")[2] for k in siblings))
        return ConfigError(f"{key}: there is no such key.{guess} Keys of {parent}: {', '.join(siblings)}.")
    top = [k for k in known if "." not in k]
    guess = nearest(key, known) or nearest(name, (k.rpartition(".")[2] for k in known))
    return ConfigError(f"{key}: there is no such key.{guess} Top-level keys: {', '.join(top)}.")
