"""Extending a run: ``resume_from=<run>`` starts a run where a shorter one of the same settings has ended.

The result is the same, bit for bit, as that of a run trained from the start, so identity and folder are the same, too.
"""

import logging
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from geexp.config.arguments import quoted_override
from geexp.config.compose import validated
from geexp.config.errors import ConfigError, DataError, UserError
from geexp.config.protocol import planned_epochs, same_start, stretched
from geexp.config.schema import TrainConfig
from geexp.runs.identity import differences
from geexp.runs.job import Job, make_job
from geexp.runs.run import Run
from geexp.runs.run_files import BEST, HISTORY, LAST, keep_epochs
from geexp.training.checkpoints import INFO, AtomicCheckpointIO, Checkpoint, checkpoint_to_resume, load_checkpoint

log = logging.getLogger(__name__)


def checkpoint_to_extend(job: Job, own: Checkpoint | None) -> Checkpoint | None:
    """The last checkpoint of the run in ``resume_from``; None if this run's ``own`` is as far, or that run is gone.

    Raises:
        ConfigError: if this run would have had another checkpoint there, naming the keys that differ.
        DataError: if there is no such run, it is being trained, or it has no readable checkpoint.
    """
    given = job.config.resume_from
    run = Run(Path(str(given)))
    if not run.folder.is_dir():
        if own is not None:
            return None
        raise DataError(f"resume_from={given}: there is no such folder.")
    if run.locked:
        raise DataError(f"resume_from={given}: the run is being trained. Wait until it ends, or stop it.")
    checkpoint = checkpoint_to_resume(run.folder)
    if checkpoint is None:
        raise DataError(f"resume_from={given}: there is no checkpoint of a run. Leave resume_from out.")
    rows = [row for row in run.history() if row["epoch"] <= checkpoint.info.epoch]
    reason = why_not(job, make_job(checkpoint.config), rows, step=checkpoint.content["global_step"])
    if reason is not None:
        raise ConfigError(f"resume_from={given}: {reason} Leave resume_from out to train from the start.")
    further = own is None or checkpoint.content["global_step"] > own.content["global_step"]
    return checkpoint if further else None


def why_not(job: Job, other: Job, rows: list[dict[str, Any]], *, step: int) -> str | None:
    """Why ``job`` cannot go on from the other run after the epochs in ``rows`` and ``step`` steps; None if it can."""
    different = differences(job.identity, other.identity)
    beyond = {key: values for key, values in different.items() if not _is_length(key)}
    if beyond:
        return f"the run has other settings than this one: {_named(beyond)}. They may differ in length only."
    epochs = len(rows)
    begun = epochs if rows and step == rows[-1]["step"] else epochs + 1
    ours, theirs = stretched(job.config.schedule), stretched(other.config.schedule)
    planned = planned_epochs(job.config)
    if (planned is not None and planned < begun) or (ours.iterations is not None and ours.iterations < step):
        return f"it is longer than this run: {_named(different)}."
    if not same_start(ours, theirs, begun if theirs.iterations is None else step):
        return f"its learning rates so far are not those of this run: {_named(different)}."
    if theirs.iterations is not None and ours.iterations != theirs.iterations <= step:
        whole = epochs > 1 and step == epochs * rows[0]["step"]  # the first epoch alone does not tell its length
        return None if whole else f"it ended within an epoch, where this run goes on: {_named(different)}."
    return None


def adopt(source: Checkpoint, folder: Path, config: dict[str, Any], run_id: str) -> None:
    """Copy the history and the checkpoints of a run, as if the run with this configuration and id had written them.

    ``last.ckpt`` is written at the end: without it, an interrupted copy is made again.
    """
    run = Run(source.path.parents[1])
    if source.info.epoch:
        shutil.copyfile(run.folder / HISTORY, folder / HISTORY)
    keep_epochs(folder, source.info.epoch)
    for name, path in ((BEST, run.checkpoint(BEST)), (LAST, source.path)):
        if path.is_file():
            checkpoint = load_checkpoint(path)
            info = asdict(replace(checkpoint.info, config=config, run_id=run_id))
            AtomicCheckpointIO().save_checkpoint({**checkpoint.content, INFO: info}, Run(folder).checkpoint(name))


def mention_shorter_run(job: Job, arguments: list[str]) -> None:
    """Log which run beside this new one differs from it in length only, and how to go on from it.

    ``arguments`` of ``geexp.train`` train this run from the start.
    """
    found = [(len(rows), reason is None, run, reason, different) for run, rows, reason, different in _siblings(job)]
    if not found:
        return
    epochs, usable, run, reason, different = max(found, key=lambda one: (one[1], one[0]))
    command = shlex.join(["python", "-m", "geexp.train", *arguments, quoted_override("resume_from", str(run.folder))])
    log.info(
        "%s differs in %s only and has finished %d %s. %s",
        run.folder, _named(different), epochs, "epoch" if epochs == 1 else "epochs",
        f"To go on from it, stop this run and start: {command}" if usable
        else f"It cannot be continued as this run: {reason}",
    )  # fmt: skip


def _siblings(job: Job) -> Iterator[tuple[Run, list[dict[str, Any]], str | None, dict[str, Any]]]:
    """The runs beside the job's with finished epochs that differ in length only, and ``why_not`` to extend them."""
    for path in sorted(job.folder.parent.glob(f"seed{job.config.seed}-*/config.yaml")):
        run = Run(path.parent)
        rows = run.history()
        if run.folder == job.folder or not rows or not run.resumable:
            continue
        try:
            other = make_job(validated(TrainConfig, yaml.safe_load(path.read_text(encoding="utf-8"))))
        except (UserError, OSError, yaml.YAMLError):  # of another version of geexp, or damaged
            continue
        different = differences(job.identity, other.identity)
        if all(map(_is_length, different)):
            yield run, rows, why_not(job, other, rows, step=rows[-1]["step"]), different


def _is_length(key: str) -> bool:
    return key == "trainer.max_epochs" or key.startswith("schedule.")


def _named(different: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key}={ours} (there: {theirs})" for key, (ours, theirs) in different.items())
