"""An entry point: Hydra in, a checked configuration to a function, an exit code out.

Exit codes: 0 done, 1 failed (a bug of ours shows its traceback), 2 wrong usage or configuration, 75 preempted (the same
command, started again, goes on), 130 interrupted.
"""

import functools
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from geexp.config.compose import known_keys, store_schema, validated, wrong_type
from geexp.config.errors import (
    INTERRUPTED,
    UNWRITABLE,
    ConfigError,
    DataError,
    UserError,
    bad_value,
    unknown_key,
)
from geexp.config.ranks import rank
from geexp.registry import config_directory

T = TypeVar("T")
log = logging.getLogger(__name__)


def command(
    name: str,
    schema: type[T],
    *,
    sweeps: bool = False,
    schema_name: str | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> Callable[[Callable[[T], object]], Callable[[], None]]:
    """Turn ``task(config)`` into a ``main()`` that composes ``conf/<name>.yaml`` with the command line.

    Mistakes of the user end in one message on standard error and exit code 2, whoever found them: Hydra, OmegaConf, our
    schema or our rules.

    Args:
        sweeps: whether there is ``-m``; then ``--cfg`` also lists the jobs, on standard error.
        schema_name: the name by which the configuration's files include the schema, by default ``<name>_schema``.
        prepare: called before Hydra composes, to register resolvers.
    """

    def decorate(task: Callable[[T], object]) -> Callable[[], None]:
        @functools.wraps(task)
        def job(composed: DictConfig) -> object:
            in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
            try:
                return task(validated(schema, composed))
            except Exception as error:
                if in_sweep:  # Hydra goes on with the other jobs
                    log.error("job failed: %s", error, exc_info=not isinstance(error, UserError))
                elif isinstance(error, UserError):
                    _refuse(name, error)
                raise

        def main() -> None:
            prepare()
            store_schema(schema_name or f"{name}_schema", schema)
            logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is told by what fails next
            sys.argv[1:] = [_quoted_choice(a) for a in sys.argv[1:] if a not in _NOTHING_CHOSEN]
            if not sweeps and {"-m", "--multirun"} & set(sys.argv):
                _refuse(name, ConfigError("does one thing at a time: leave -m out."))
            if rank() != 0:
                sys.argv += _SILENT
            wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hands exceptions to us instead of printing them
            hydras = hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=name)(job)
            try:
                hydras()
                if sweeps and (plain := _without_cfg(sys.argv)) is not None:
                    sys.argv = [*plain, "dry_run=true"]
                    with redirect_stdout(sys.stderr):
                        hydras()
            except KeyboardInterrupt:
                sys.exit(INTERRUPTED)
            except Exception as error:
                mistake = None if wants_traceback else explain(error, schema)
                if mistake is None:
                    raise
                _refuse(name, mistake)
            finally:
                if not wants_traceback:
                    del os.environ["HYDRA_FULL_ERROR"]

        return main

    return decorate


def explain(error: BaseException, schema: type) -> UserError | None:
    """What the user did wrong, if that is what the exception came from; None for anything else."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, UserError):
            return link
    if any(_is_a_bug(link) for link in chain[1:]):  # what OmegaConf wraps into an error of an interpolation
        return None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if not group:
            return ConfigError(f"there is no configuration {choice!r}.")
        hint = "Any other power of two goes as ge.extent=16." if group == "extent" else ""
        return bad_value(group, choice, error.options or [], hint=hint)
    of_a_key = [link for link in chain if isinstance(link, OmegaConfBaseException) and link.full_key]
    of_ours = [link for link in of_a_key if not str(link.full_key).startswith("hydra")]
    for link in of_ours:
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)):
            return unknown_key(str(link.full_key), known_keys(schema))
    if of_ours:
        return wrong_type(schema, of_ours[0])
    if isinstance(error, (HydraException, OmegaConfBaseException, YAMLError)):
        return ConfigError(" ".join(str(error).split()))
    if isinstance(error, ValueError) and str(error).startswith("Only one of --run, --multirun, --cfg"):
        return ConfigError("-m and --cfg do not go together: say dry_run=true to see what the jobs of a sweep are.")
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return ConfigError("a group takes the name of an option, not null or a number; --help shows the options.")
    if isinstance(error, ValueError) and isinstance(error.__cause__, OSError):  # logging's, of a file it cannot open
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        where = error.filename or "a file of the output folder"  # which writing does not say, and opening does
        return DataError(f"{where}: {error.strerror}. Make room and let it be written to, or choose another folder.")
    if isinstance(error, OSError) and error.filename:
        return DataError(f"{error.filename}: {error.strerror}.")
    return None


def _is_a_bug(error: BaseException) -> bool:
    """Whether code of ours raised it, and it is no error that a user makes."""
    if isinstance(error, (UserError, HydraException, OmegaConfBaseException, YAMLError, OSError)):
        return False
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE):
            return True
        trace = trace.tb_next
    return False


_PACKAGE = Path(__file__).parents[1]

# What conf/train.yaml says already; on the command line Hydra refuses it.
_NOTHING_CHOSEN = ("experiment=null", "scale=null", "debug=null")


# The first rank speaks, logs and writes; the others speak of what it has not spoken of some seconds later.
_FIRST_SPEAKS = 10
_SILENT = ["hydra/hydra_logging=disabled", "hydra/job_logging=disabled", "hydra.output_subdir=null"]


def _without_cfg(arguments: list[str]) -> list[str] | None:
    """A sweep's command line without ``--cfg job``, which shows what its jobs have in common; None for any other."""
    of_a_sweep = any(a.startswith("+sweep=") for a in arguments)
    shown = [i for i, a in enumerate(arguments) if a.startswith(("--cfg", "-c")) and not a.startswith("-cd")]
    if not of_a_sweep or not shown:
        return None
    (i,) = shown
    return arguments[:i] + arguments[i + (1 if "=" in arguments[i] else 2) :]


def _refuse(name: str, error: UserError) -> NoReturn:
    if rank() == 0:
        print(f"geexp.{name}: {error}", file=sys.stderr)
    else:
        # torchrun ends us as soon as the first rank has ended, which will have said the same. If not, it does not know.
        time.sleep(_FIRST_SPEAKS)
        print(f"geexp.{name} (rank {rank()}): {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def _quoted_choice(argument: str) -> str:
    """``extent=8`` as typed: Hydra takes a bare number for an integer and refuses integers as names of options."""
    match = re.fullmatch(r"(extent=)(\d+|global)((?:,(?:\d+|global))*)", argument)
    return argument if match is None else re.sub(r"\d+", lambda m: f"'{m[0]}'", argument)
