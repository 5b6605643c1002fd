"""One run, from a checked configuration to ``result.json``."""

import logging
import shlex
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from rich.console import Console

from geexp.config.errors import UNWRITABLE, ConfigError, DataError
from geexp.config.protocol import batchnorm_batch, device_batch, planned_epochs
from geexp.config.ranks import rank, restarted
from geexp.config.schema import TrainConfig
from geexp.data.reading import explained_workers
from geexp.runs.atomic_write import remove_unfinished
from geexp.runs.config_tree import as_text, config_tree
from geexp.runs.environment import environment, peak_memory
from geexp.runs.identity import ge_slug
from geexp.runs.job import Job, make_job
from geexp.runs.lock import run_lock
from geexp.runs.metrics import Score
from geexp.runs.run_files import (
    BEST,
    HISTORY,
    LAST,
    PREVIOUS,
    RESULT,
    checkpoint_folder,
    finite,
    keep_epochs,
    read_history,
    write_json,
)
from geexp.runs.status import StatusFile
from geexp.training.checkpoints import (
    FORMAT,
    BestCheckpoint,
    LastCheckpoint,
    RunInCheckpoint,
    checkpoint_to_resume,
    configuration_of,
    load_checkpoint,
)
from geexp.training.classification import Classification
from geexp.training.heartbeat import Heartbeat
from geexp.training.history import History
from geexp.training.loggers import TolerantWandb, finish_wandb, make_logger
from geexp.training.optimizer import group_table
from geexp.training.safe_points import SafePoints
from geexp.training.speed import said_of_speed
from geexp.training.stopping import Stopped, StopSignals
from geexp.training.task import Task
from geexp.training.trainer import explained_ranks, lightnings_refusals, make_trainer

log = logging.getLogger(__name__)


def train(job: Job, task: Task | None = None) -> dict[str, Any] | None:
    """Train, or go on with, a run; by default for classification.

    Returns what was written to its ``result.json``; None in the other ranks than the first, which write nothing.

    Raises:
        ConfigError: for ``resume=true`` without a checkpoint, and what the data set or the model refuses.
        DataError: for images or checkpoints that cannot be read, a run that another process trains, a full disk.
        DivergedError: when the loss is no number any more.
        Stopped: after a signal (SystemExit with code 75, or 130 for Ctrl-C), when the last checkpoint has been named.
        KeyboardInterrupt: after a second Ctrl-C.
    """
    config, folder = job.config, job.folder
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        stack.enter_context(_explained_writing(folder))
        status: StatusFile | None = None
        if rank() == 0:
            stack.enter_context(run_lock(folder))
            status = stack.enter_context(StatusFile(folder, epochs=planned_epochs(config)))
            stack.enter_context(_explained_writing(folder))  # for the status, too
            for left in (folder, checkpoint_folder(folder)):
                remove_unfinished(left)
        stack.enter_context(explained_ranks())
        return _train(job, task or Classification(), signals, status)


def _train(job: Job, task: Task, signals: StopSignals, status: StatusFile | None) -> dict[str, Any] | None:
    folder = job.folder
    resume_from, run_id, group = _resume_from(job)
    config = replace(job.config, logger=replace(job.config.logger, group=group))
    plain = asdict(config)
    callbacks = [_callback(name, target) for name, target in config.callbacks.items() if target is not None]
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data: Any = task.data(config)
    if rank() == 0:
        _show(config, folder, plain)
    module: Any = task.module(config)
    if rank() == 0:
        optimizer = module.configure_optimizers()
        if not _in_sweep():
            Console(stderr=True).print(group_table(optimizer))
        log.info("computing with %s", said_of_speed(config, optimizer))
    log.info("%s: %s", "going on with" if resume_from else "training into", folder)

    logger = make_logger(config, folder, run_id) if rank() == 0 else None
    every = config.trainer.checkpoint_every_n_steps
    safe_points = SafePoints(signals, saves_every=every, config=plain)
    last = LastCheckpoint(checkpoint_folder(folder), every_n_steps=every, stop=lambda: safe_points.stop)
    ours = [safe_points, History(folder / HISTORY), RunInCheckpoint(plain, run_id=run_id)]
    if status is not None:
        ours.append(Heartbeat(status))
    try:
        trainer = make_trainer(config, folder, logger=logger or False, callbacks=[*ours, *callbacks, last])
        if rank() == 0:
            _prepare(folder, resume_from)
        _fit(trainer, module, data, resume_from, folder)
        account, ending = data.account(), task.ending(trainer, module, data, folder)  # all ranks must ask
        if rank() != 0:
            return None
        result = _result(job, module.score, account, callbacks) | task.facts(config, module)
        if isinstance(logger, TolerantWandb):
            logger.log_end(result, read_history(folder), ending)
        write_json(folder / RESULT, result)
    finally:
        if config.logger.name == "wandb" and rank() == 0:
            finish_wandb()
    return result


def _show(config: TrainConfig, folder: Path, plain: dict[str, Any]) -> None:
    tree = config_tree(plain, title=f"{config.model.name} {ge_slug(config.ge, config.model)}")
    if not _in_sweep():  # where each job would repeat it
        Console(stderr=True).print(tree)
    (folder / "config_tree.txt").write_text(as_text(tree), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")


def _prepare(folder: Path, resume_from: Path | None) -> None:
    """Bring the folder to where the training begins; what an earlier one left goes only now that this one can start."""
    last = checkpoint_folder(folder) / LAST
    if resume_from is None:
        # In this order: killed in between, there is no checkpoint left whose history is gone.
        for left in (*(last.with_name(name) for name in (LAST, PREVIOUS, BEST)), folder / RESULT, folder / HISTORY):
            left.unlink(missing_ok=True)
        return
    keep_epochs(folder, load_checkpoint(resume_from)[FORMAT]["epoch"])
    if resume_from != last and last.exists():  # or it would soon take the place of the one that is good
        last.replace(last.with_name("damaged.ckpt"))


@contextmanager
def _explained_writing(folder: Path) -> Iterator[None]:
    """A disk that is full or cannot be written to is nothing that a traceback explains."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise DataError(
            f"{error.filename or folder}: {error.strerror}. What was finished is safe; the same command goes on from "
            "the last checkpoint."
        ) from error


def _callback(name: str, target: dict[str, Any]) -> pl.Callback:
    try:
        callback = instantiate(target)
    except InstantiationException as error:
        raise ConfigError(f"callbacks.{name}: {' '.join(str(error.__cause__ or error).split())}") from error
    if not isinstance(callback, pl.Callback):
        raise ConfigError(f"callbacks.{name}: {target['_target_']} makes a {type(callback).__name__}, not a callback.")
    return callback


def _resume_from(job: Job) -> tuple[Path | None, str, str | None]:
    """The checkpoint to go on from, if any, and the run's name and group at W&B, which it keeps."""
    config, folder = job.config, job.folder
    start_over = (config.force or config.resume is False) and not restarted()
    found = None if start_over else checkpoint_to_resume(folder)
    if found is not None:
        path, about = found
        before = configuration_of(path, about)
        job.require_same(make_job(before).identity)
        return path, about["run_id"], before.logger.group or config.logger.group
    if config.resume is True:
        raise ConfigError(
            f"resume=true: there is no checkpoint in {checkpoint_folder(folder)}. Leave it out to start this run."
        )
    return None, uuid.uuid4().hex[:8], config.logger.group


def _fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    resume_from: Path | None,
    folder: Path,
) -> None:
    last = checkpoint_folder(folder) / LAST
    try:
        with lightnings_refusals(), explained_workers():
            trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
    except Stopped as stop:
        if last.is_file() and rank() == 0:
            print(
                f"\n{stop}: stopped in epoch {trainer.current_epoch + 1} after step {trainer.global_step}; everything "
                f"up to here is in {last}\nGo on with: {_go_on_command()}",
                file=sys.stderr,
            )
        raise
    except SystemExit as stop:  # Lightning turns a second Ctrl-C into one
        if not trainer.interrupted:
            raise
        if last.is_file() and rank() == 0:
            print(
                f"\nInterrupted at once; the last checkpoint is {last}\nGo on with: {_go_on_command()}", file=sys.stderr
            )
        raise KeyboardInterrupt from stop


def _go_on_command() -> str:
    """The command that was typed, made to go on. In a sweep the other jobs have nothing to go on with yet."""
    arguments = [a for a in sys.argv[1:] if not a.startswith(("force=", "resume="))]
    return _command([*arguments, *([] if _in_sweep() else ["resume=true"])])


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _typed() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else sys.argv[1:]


def _command(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "geexp.train", *arguments])  # which starts the other processes of its node


def _result(
    job: Job,
    score: Score,
    account: dict[str, Any],
    callbacks: list[pl.Callback],
) -> dict[str, Any]:
    config, folder = job.config, job.folder
    rows = read_history(folder)
    best = next((c.best for c in callbacks if isinstance(c, BestCheckpoint)), None) or min(rows, key=score.loss)
    return {
        "format": 1,
        "status": "completed",
        "identity": job.identity,
        "scale": config.scale,
        "metrics": {"last": rows[-1], "best": finite(best)},
        "epochs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "feed": {"name": config.feed.name, **account},
        "devices": {
            "count": config.trainer.devices * config.trainer.nodes,
            "images_per_device": device_batch(config),
            "accumulate": config.trainer.accumulate,
            "images_per_batchnorm": batchnorm_batch(config),
        },
        "peak_memory_bytes": peak_memory(),
        "config": asdict(config),
        "command": _command(_typed()),
        **environment(),
    }
