"""The entry points: compose with Hydra, validate, call a function with the configuration, end with an exit code.

Exit codes: 0 done, 1 failed (with a traceback if it is a bug in geexp), 2 wrong usage or configuration, 75 preempted
(the same command resumes), 130 interrupted.
"""

import argparse
import functools
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from geexp.config.arguments import failed_reference, flags_first, refused_override, several_values
from geexp.config.compose import known_keys, store_schema, validated, wrong_type
from geexp.config.errors import (
    INTERRUPTED,
    UNWRITABLE,
    ConfigError,
    DataError,
    UserError,
    bad_value,
    causes,
    unknown_key,
)
from geexp.config.hydra_private import GROUP_NEEDS_A_NAME, M_WITH_CFG, SWEEP_WITHOUT_M, help_need_not_be_text
from geexp.config.process import prepare_process
from geexp.config.ranks import rank
from geexp.registry import config_directory, options

T = TypeVar("T")
log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]
# These are the defaults of conf/train.yaml, which Hydra does not accept on the command line.
_NOTHING_CHOSEN = ("experiment=null", "scale=null", "debug=null")
# Only rank 0 prints, logs and writes. Another rank prints its error if rank 0 is still alive after these seconds.
_RANK_0_FIRST = 10.0
_SILENT = ["hydra/hydra_logging=disabled", "hydra/job_logging=disabled", "hydra.output_subdir=null"]
# Groups that are in no defaults list, since they are chosen on the command line only (+sweep=…).
_ADDED = ("sweep",)
# Marks a single run that is passed to the sweeper; see _as_a_sweep.
_ONE_JOB = "hydra.sweep.subdir=."
# What else may be meant by an option that does not exist.
_HINTS = {
    "extent": "Set any other power of two with ge.extent=, as in ge.extent=16.",
    "hydra/sweeper": "optuna is an extra: pip install 'geexp[optuna]'.",
}
_FOOTER = "Set a key with key=value. All keys and their defaults: --cfg job. Hydra's own flags: --hydra-help"


def command(
    name: str,
    schema: type[T],
    *,
    sweeps: bool = False,
    schema_name: str | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> Callable[[Callable[[T], object]], Callable[[], None]]:
    """Turn ``task(config)`` into a ``main()`` that composes ``conf/<name>.yaml`` with the command line.

    A user error, raised by Hydra, OmegaConf or geexp, ends in one message on standard error and exit code 2.

    Args:
        sweeps: whether the command accepts ``-m``; its ``--cfg`` then also lists the jobs, on standard error.
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
                if in_sweep:  # the other jobs continue
                    log.error("job failed: %s", error, exc_info=not isinstance(error, UserError))
                elif isinstance(error, UserError):
                    _refuse(name, error)
                raise

        def main() -> None:
            _begin(name)
            prepare()
            store_schema(schema_name or f"{name}_schema", schema)
            if not sweeps and {"-m", "--multirun"} & set(sys.argv):
                _refuse(name, ConfigError("does not support sweeps: leave -m out."))
            if sweeps and _is_true(sys.argv, "dry_run"):
                sys.argv[1:] = _as_a_sweep(sys.argv[1:])
            _run(name, schema, job)
            if sweeps and (plain := _without_cfg(sys.argv[1:])) is not None:
                sys.argv[1:] = _as_a_sweep([*plain, "dry_run=true"])
                with redirect_stdout(sys.stderr):
                    _run(name, schema, job)

        return main

    return decorate


def sweep_command(
    name: str, schema: type, *, schema_name: str, prepare: Callable[[], None]
) -> Callable[[Callable[[list[Any], DictConfig], object]], Callable[[], None]]:
    """Turn ``task(jobs, composed)`` into a ``main()`` that accepts the command line of a sweep or a single run.

    ``jobs`` are the jobs that ``geexp.train`` would train, composed and checked; ``composed`` is the configuration that
    they share. For the arguments see ``command``.
    """

    def decorate(task: Callable[[list[Any], DictConfig], object]) -> Callable[[], None]:
        @functools.wraps(task)
        def job(composed: DictConfig) -> object:
            raise AssertionError("the sweeper passes the jobs to on_jobs and runs none")

        vars(job)["on_jobs"] = task  # read by GeexpSweeper

        def main() -> None:
            _begin(name)
            prepare()
            store_schema(schema_name, schema)
            sys.argv[1:] = _as_a_sweep(sys.argv[1:])
            _run(name, schema, job)

        return main

    return decorate


def _begin(name: str) -> None:
    """Prepare the process, then the command line."""
    try:
        moved = prepare_process()
        sys.argv[1:] = flags_first(sys.argv[1:])
    except ConfigError as error:
        _refuse(name, error)
    if moved is not None and rank() == 0:
        print(f"geexp.{name}: {moved}", file=sys.stderr)


def _run(name: str, schema: type, job: Callable[[DictConfig], object]) -> None:
    """Let Hydra compose and run; all user errors are handled here."""
    logging.raiseExceptions = False  # on a full disk the next write after the log's fails with a better message
    sys.argv[1:] = [_quoted_choice(a) for a in sys.argv[1:] if a not in _NOTHING_CHOSEN]
    if rank() != 0:
        sys.argv[1:] = [*sys.argv[1:], *_SILENT]
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises exceptions instead of printing them
    try:
        if {"-h", "--help"} & set(sys.argv):
            print(_help_text(name, [word for word in sys.argv[1:] if word not in ("-h", "--help")]))
            return
        with help_need_not_be_text():
            hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=name)(job)()
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


def explain(error: BaseException, schema: type) -> UserError | None:
    """The user error behind an exception; None for anything else, such as a bug in geexp."""
    chain = causes(error)
    for link in chain:
        if isinstance(link, UserError):
            return link
    if any(_is_a_bug(link) for link in chain[1:]):  # OmegaConf wraps it into an interpolation error
        return None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if not group:
            return ConfigError(f"there is no configuration {choice!r}.")
        return bad_value(group, choice, error.options or options(group), hint=_HINTS.get(group, ""))
    if isinstance(error, OverrideParseException):
        several = _is_a_sweep(sys.argv) and _ONE_JOB not in sys.argv
        return refused_override(error.override, sweep=several)
    if isinstance(error, ConfigCompositionException) and (ambiguous := re.match(SWEEP_WITHOUT_M, str(error))):
        return several_values(ambiguous[1])
    if isinstance(error, InterpolationResolutionError):
        return failed_reference(str(error.full_key), str(error).splitlines()[0].rstrip("."), sys.argv[1:])
    of_a_key = [link for link in chain if isinstance(link, OmegaConfBaseException) and link.full_key]
    of_ours = [link for link in of_a_key if not str(link.full_key).startswith("hydra")]
    for link in of_ours:
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)):
            return unknown_key(str(link.full_key), known_keys(schema))
    if of_ours:
        return wrong_type(schema, of_ours[0])
    if isinstance(error, (HydraException, OmegaConfBaseException, YAMLError)):
        return ConfigError(" ".join(str(error).split()))
    if isinstance(error, ValueError) and str(error).startswith(M_WITH_CFG):
        return ConfigError("-m and --cfg exclude each other: use dry_run=true to list the jobs of a sweep.")
    if isinstance(error, ValueError) and str(error).startswith(GROUP_NEEDS_A_NAME):
        return ConfigError("the value of a group must be the name of an option, not null or a number; see --help.")
    if isinstance(error, ValueError) and isinstance(error.__cause__, OSError):  # logging cannot open its file
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        where = error.filename or "a file of the output folder"  # a write error has no file name
        return DataError(f"{where}: {error.strerror}. Free space and make it writable, or choose another folder.")
    if isinstance(error, OSError) and error.filename:
        return DataError(f"{error.filename}: {error.strerror}.")
    return None


def _is_a_bug(error: BaseException) -> bool:
    """Whether geexp's code raised this exception, and it is not a user error."""
    if isinstance(error, (UserError, HydraException, OmegaConfBaseException, YAMLError, OSError)):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(Path(frame.f_code.co_filename).is_relative_to(_PACKAGE) for frame, _ in frames)


def _without_cfg(arguments: list[str]) -> list[str] | None:
    """A sweep's command line without ``--cfg job``, which prints the jobs' common part; None for any other command."""
    shown = [i for i, a in enumerate(arguments) if a.startswith(("--cfg", "-c")) and not a.startswith("-cd")]
    if not _is_a_sweep(arguments) or not shown:
        return None
    (i,) = shown
    return arguments[:i] + arguments[i + (1 if "=" in arguments[i] else 2) :]


def _is_a_sweep(arguments: list[str]) -> bool:
    sweeps = any(a in ("-m", "--multirun") or a.startswith(("+sweep=", "hydra.mode=MULTIRUN")) for a in arguments)
    return sweeps and "hydra.mode=RUN" not in arguments  # the command of a single job of a sweep sets hydra.mode=RUN


def _as_a_sweep(arguments: list[str]) -> list[str]:
    """The command line that passes the jobs of a sweep, or a single run as its only job, to ``GeexpSweeper``.

    Without a sweep Hydra would create the run's folder before the task starts.
    """
    if {"--help", "-h", "--hydra-help"} & set(arguments):
        return arguments
    folder = [] if _is_a_sweep(arguments) else ["hydra.sweep.dir=${hydra.run.dir}", _ONE_JOB]
    return [*arguments, "hydra.mode=MULTIRUN", *folder]


def _is_true(arguments: list[str], key: str) -> bool:
    values = [a.partition("=")[2] for a in arguments if a.lstrip("+").startswith(f"{key}=")]
    return bool(values) and values[-1].lower() in ("true", "1", "yes", "y", "on")


def _refuse(name: str, error: UserError) -> NoReturn:
    if rank() == 0:
        print(f"geexp.{name}: {error}", file=sys.stderr)
    else:
        # Usually rank 0 fails for the same reason, prints it and ends, and torchrun then kills this process.
        time.sleep(_RANK_0_FIRST)
        print(f"geexp.{name} (rank {rank()}): {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def _quoted_choice(argument: str) -> str:
    """Quote the number in ``extent=8``: Hydra parses it as an integer, which cannot be the name of an option."""
    match = re.fullmatch(r"(extent=)(\d+|global)((?:,(?:\d+|global))*)", argument)
    return argument if match is None else re.sub(r"\d+", lambda m: f"'{m[0]}'", argument)


def _help_text(name: str, arguments: Sequence[str]) -> str:
    """The help of ``python -m geexp.<name>``, with the groups as chosen by the other ``arguments``.

    Hydra's own help takes a second, since it reads every group again for each of its options.
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--config-dir", "-cd", type=Path)
    known, rest = flags.parse_known_args(list(arguments))
    overrides = [word for word in rest if not word.startswith("-")]
    folders = [config_directory()]
    if known.config_dir is not None:
        folders.append(known.config_dir.absolute())
        overrides.append(f"hydra.searchpath=['file://{folders[-1]}']")
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        whole = compose(name, overrides=overrides, return_hydra_config=True)
    chosen = {group for group in whole.hydra.runtime.choices if not group.startswith("hydra")}
    if "experiment" in chosen:
        chosen |= {*_ADDED, *(f"data/{folder.name}" for folder in (folders[0] / "data").iterdir() if folder.is_dir())}
    lines = [f"{group}: {', '.join(_options(folders, group))}" for group in sorted(chosen)]
    settings = OmegaConf.to_yaml(OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]))
    groups = ["Groups, with their options (group=option):", *lines, ""] if lines else []
    return "\n".join([whole.hydra.help.header, *groups, "Configuration:", "", settings, _FOOTER])


def _options(folders: Sequence[Path], group: str) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
