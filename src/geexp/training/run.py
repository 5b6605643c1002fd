"""One run, from its job to ``result.json``. ``train`` lists all steps in order."""

import logging
import shlex
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.text import Text
from rich.tree import Tree

from geexp.config.errors import UNWRITABLE, ConfigError, DataError
from geexp.config.process import PlainConsole
from geexp.config.protocol import batchnorm_batch, device_batch, planned_epochs
from geexp.config.ranks import rank, restarted
from geexp.config.schema import TrainConfig
from geexp.data.reading import explained_workers
from geexp.runs.atomic_write import remove_unfinished
from geexp.runs.data_record import DataRecord
from geexp.runs.environment import environment, peak_memory
from geexp.runs.identity import ge_slug
from geexp.runs.job import Job, make_job
from geexp.runs.lock import run_lock
from geexp.runs.metrics import score_of
from geexp.runs.run import Result, Run
from geexp.runs.run_files import BEST, HISTORY, LAST, PREVIOUS, RESULT, checkpoint_folder, finite, keep_epochs
from geexp.runs.status import StatusFile
from geexp.training.callbacks import BestCheckpoint, Heartbeat, History, LastCheckpoint, RunInCheckpoint, log_row
from geexp.training.checkpoints import Checkpoint, checkpoint_to_resume
from geexp.training.classification import Classification
from geexp.training.extension import adopt, checkpoint_to_extend, mention_shorter_run
from geexp.training.lightning_private import was_interrupted
from geexp.training.loggers import TolerantWandb, finish_wandb, make_loggers
from geexp.training.optimizer import group_table
from geexp.training.schedules import require_schedule
from geexp.training.stopping import SafePoints, Stopped, StopSignals
from geexp.training.task import Task
from geexp.training.trainer import (
    describe_performance,
    instantiated,
    make_trainer,
    translate_ddp_errors,
    translate_lightning_errors,
)

log = logging.getLogger(__name__)


def train(job: Job, task: Task | None = None) -> Result | None:
    """Train or resume a run, and write its ``result.json``. ``task`` defaults to classification.

    Returns:
        The result on rank 0, None on other ranks.

    Raises:
        ConfigError: for ``resume=true`` without a checkpoint, or settings that the data or the model do not
            support, or a stopped run on other data.
        DataError: for unreadable images or checkpoints, a run that another process is training, or a full disk.
        DivergedError: if loss or weights become NaN or infinite.
        Stopped: after a signal, once the last checkpoint is written (SystemExit with code 75, or 130 for Ctrl-C).
        KeyboardInterrupt: after a second Ctrl-C.
    """
    config, folder = job.config, job.folder
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        stack.enter_context(_translate_disk_errors(folder))
        status: StatusFile | None = None
        if rank() == 0:
            stack.enter_context(run_lock(folder))
            status = stack.enter_context(StatusFile(folder, epochs=planned_epochs(config)))
            stack.enter_context(_translate_disk_errors(folder))  # inside StatusFile, so that the status has the message
            for place in (folder, checkpoint_folder(folder)):
                remove_unfinished(place)
        stack.enter_context(translate_ddp_errors())
        return _train(job, task or Classification(), signals, status)


def _train(job: Job, task: Task, signals: StopSignals, status: StatusFile | None) -> Result | None:
    folder, checkpoint = job.folder, _checkpoint_to_resume(job)
    source = None  # the checkpoint, if it is another run's
    if checkpoint is not None and checkpoint.path.parent != checkpoint_folder(folder):
        source = checkpoint
    group, run_id = job.config.logger.group, uuid.uuid4().hex[:8]
    if checkpoint is not None and source is None:  # a resumed run keeps its W&B id and group
        group, run_id = checkpoint.config.logger.group or group, checkpoint.info.run_id
    config = replace(job.config, logger=replace(job.config.logger, group=group))
    plain = asdict(config)
    require_schedule(config.schedule)
    targets = {f"callbacks.{name}": target for name, target in config.callbacks.items() if target is not None}
    callbacks = [instantiated(key, target, pl.Callback) for key, target in targets.items()]
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data: Any = task.data(config)
    record: DataRecord = data.record()
    if checkpoint is not None:
        record.require_same(source.path.parents[1] if source else folder)
    if rank() == 0:
        _show(config, folder, plain)
    module = task.module(config, data, pretrained=checkpoint is None)
    if config.trainer.compile:
        module.model.compile(mode=config.trainer.compile_mode)  # in place, which keeps the parameter names
    if rank() == 0:
        optimizer = module.configure_optimizers()
        if not _in_sweep():
            PlainConsole(stderr=True).print(group_table(optimizer))

    every = config.trainer.checkpoint_every_n_steps
    safe_points = SafePoints(signals, saves_every=every, config=plain)
    last = LastCheckpoint(checkpoint_folder(folder), every_n_steps=every, stop=lambda: safe_points.stop)
    ours = [safe_points, History(folder / HISTORY), RunInCheckpoint(plain, run_id=run_id)]
    if status is not None:
        ours.append(Heartbeat(status))
    try:
        loggers = make_loggers(config, folder, run_id) if rank() == 0 else []
        trainer = make_trainer(config, folder, logger=loggers or False, callbacks=[*ours, *callbacks, last])
        if rank() == 0:
            log.info("%s", describe_performance(config, optimizer, trainer.strategy.root_device))
        start = f"going on from {source.path} in" if source else "resuming" if checkpoint else "training into"
        log.info("%s: %s", start, folder)
        if rank() == 0:
            _prepare(folder, checkpoint if source is None else None)
            if source is not None:
                adopt(source, folder, plain, run_id)
                for row in Run(folder).history():
                    log_row(row, trainer.loggers)
            if checkpoint is None or source is not None:
                record.write(folder)
        _fit(trainer, module, data, folder, None if checkpoint is None else checkpoint.path)
        account, charts = data.account(), task.final_charts(trainer, module, data, folder)  # on all ranks
        if rank() != 0:
            return None
        result = _result(job, task.result_fields(config, module), account, callbacks)
        for logger in loggers:
            if isinstance(logger, TolerantWandb):
                logger.log_end(result, Run(folder).history(), charts, task.summary_metrics)
        result.write(folder)
    finally:
        if config.logger.has("wandb") and rank() == 0:
            finish_wandb()
    return result


def _show(config: TrainConfig, folder: Path, plain: dict[str, Any]) -> None:
    """Print the configuration as a tree, and write it to two files."""
    tree = Tree(Text(f"{config.model.name} {ge_slug(config.ge, config.model)}", "bold"), guide_style="dim")
    for key, value in plain.items():
        if isinstance(value, dict):
            branch = tree.add(Text(key, "bold"))
            for name, item in value.items():
                branch.add(f"{name}: {item}")
        else:
            tree.add(f"{key}: {value}")
    if not _in_sweep():  # every job would print it again
        PlainConsole(stderr=True).print(tree)
    with (folder / "config_tree.txt").open("w", encoding="utf-8", errors="backslashreplace") as file:
        PlainConsole(file=file, width=120).print(tree)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")


def _prepare(folder: Path, checkpoint: Checkpoint | None) -> None:
    """Prepare the folder for the start of training. Called late, since a failing start must not remove anything."""
    last = Run(folder).checkpoint(LAST)
    if checkpoint is None:
        # In this order, a kill in between leaves no checkpoint without its history.
        for path in (*(last.with_name(name) for name in (LAST, PREVIOUS, BEST)), folder / RESULT, folder / HISTORY):
            path.unlink(missing_ok=True)
        return
    keep_epochs(folder, checkpoint.info.epoch)
    if checkpoint.path != last and last.exists():  # otherwise the damaged file would soon replace the good one
        last.replace(last.with_name("damaged.ckpt"))


@contextmanager
def _translate_disk_errors(folder: Path) -> Iterator[None]:
    """Raise DataError if the disk is full or not writable."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise DataError(
            f"{error.filename or folder}: {error.strerror}. Finished epochs are safe; the same command resumes from "
            "the last checkpoint."
        ) from error


def _checkpoint_to_resume(job: Job) -> Checkpoint | None:
    config, folder = job.config, job.folder
    start_over = (config.force or config.resume is False) and not restarted()
    checkpoint = None if start_over else checkpoint_to_resume(folder)
    if checkpoint is not None:
        job.require_same(make_job(checkpoint.config).identity)
    if config.resume_from is not None:
        checkpoint = checkpoint_to_extend(job, checkpoint) or checkpoint
    if checkpoint is not None:
        return replace(checkpoint, content={})  # Lightning reads the file itself; free the memory
    if config.resume is True:
        raise ConfigError(
            f"resume=true: there is no checkpoint in {checkpoint_folder(folder)}. Leave resume out to start the run."
        )
    if rank() == 0 and not start_over:
        mention_shorter_run(job, _arguments())
    return None


def _fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, folder: Path, resume: Path | None
) -> None:
    last = Run(folder).checkpoint(LAST)
    try:
        with translate_lightning_errors(), explained_workers():
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except SystemExit as stop:
        if isinstance(stop, Stopped):
            where = f"epoch {trainer.current_epoch + 1} after step {trainer.global_step}"
            what = f"{stop}: stopped in {where}; checkpoint: {last}"
        elif was_interrupted(trainer):
            what = f"interrupted immediately; the last checkpoint is {last}"
        else:
            raise
        if last.is_file() and rank() == 0:
            print(f"\n{what}\nResume with: {_resume_command()}", file=sys.stderr)
        if isinstance(stop, Stopped):
            raise
        raise KeyboardInterrupt from stop


def _resume_command() -> str:
    """The command line, with resume=true unless in a sweep, where other jobs have no checkpoint yet."""
    arguments = [a for a in sys.argv[1:] if not a.startswith(("force=", "resume="))]
    return _command(arguments if _in_sweep() else [*arguments, "resume=true"])


def _arguments() -> list[str]:
    """The arguments that train this run alone, without another folder."""
    return list(HydraConfig.get().overrides.task) if _in_sweep() else sys.argv[1:]


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _command(arguments: list[str]) -> str:
    return shlex.join(["python", "-m", "geexp.train", *arguments])


def _result(job: Job, fields: dict[str, Any], account: dict[str, Any], callbacks: list[pl.Callback]) -> Result:
    config, history = job.config, Run(job.folder).history()
    best = next((c.best for c in callbacks if isinstance(c, BestCheckpoint)), None)
    if best is None:
        best = min(history, key=score_of(history[-1]).loss)
    typed = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else sys.argv[1:]
    return Result(
        identity=job.identity,
        scale=config.scale,
        metrics={"last": history[-1], "best": finite(best)},
        epochs=len(history),
        seconds=round(sum(row["seconds"] for row in history), 3),
        feed={"name": config.feed.name, **account},
        devices={
            "count": config.trainer.devices * config.trainer.nodes,
            "images_per_device": device_batch(config),
            "accumulate": config.trainer.accumulate,
            "images_per_batchnorm": batchnorm_batch(config),
        },
        peak_memory_bytes=peak_memory(),
        config=asdict(config),
        command=_command(typed),
        environment=environment(),
        **fields,
    )
