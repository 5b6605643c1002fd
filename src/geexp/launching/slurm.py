"""Run the jobs of a sweep as SLURM job arrays, with one task per device; preempted jobs are requeued.

submitit writes the batch script and submits the array. Its signal handling and accounting queries are not used: the
ranks save a checkpoint, and the batch script, which outlives them, requeues the job once.
"""

import contextlib
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from geexp.config.errors import PREEMPTED, ConfigError
from geexp.config.extras import require_extras
from geexp.launching.jobs import SweepJob
from geexp.launching.slurm_task import NOTE, train_rank
from geexp.runs.run import Run
from geexp.runs.run_files import write_json
from geexp.runs.status import Status, read_status

log = logging.getLogger(__name__)

PENDING, RUNNING, COMPLETE, FAILED = "pending", "running", "complete", "failed"


@dataclass(frozen=True)
class Submitted:
    """A submitted job, with the log file of its rank 0."""

    job: SweepJob
    slurm_id: str
    log: Path


@dataclass(frozen=True)
class Change:
    """A new state of a job: ``pending``, ``running``, ``complete`` or ``failed``; ``detail`` is the reason or place."""

    submitted: Submitted
    state: str
    detail: str


@dataclass(frozen=True)
class InQueue:
    """SLURM's state of a job with its reason, and the job's nodes."""

    state: str
    reason: str = ""
    nodes: str = ""


# Without PREEMPTED: such a job is either requeued or disappears.
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "GONE"}
_GONE = InQueue("GONE")


@dataclass
class SlurmSettings:
    """The resources of a job. Nodes, tasks and GPUs follow from ``trainer.nodes`` and ``trainer.devices``.

    Attributes:
        name: of the array.
        partition, account, qos, constraint, mem, cpus_per_task: sbatch's options; null is the cluster's default.
        minutes: time limit, after which the job is requeued and resumes. null: the partition's limit.
        warning: seconds before the limit at which the job is signalled; allow ample time for a step and a checkpoint.
        gpu: type of GPU, if the cluster has several. GPUs are requested unless ``trainer.accelerator=cpu``.
        parallel: how many jobs of an array may run at once.
        setup: lines of shell before the training, such as ``module load``.
        sbatch: any other option by its long name: ``{reservation: friday}``.
    """

    name: str = "geexp"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    mem: str | None = None
    cpus_per_task: int | None = None
    minutes: int | None = 240
    warning: int = 120
    gpu: str | None = None
    parallel: int | None = None
    setup: list[str] = field(default_factory=list)
    sbatch: dict[str, Any] = field(default_factory=dict)


def submit(jobs: Sequence[SweepJob], settings: SlurmSettings, folder: Path) -> list[Submitted]:
    """Submit the jobs as arrays, one per number of nodes and devices, the longest array first.

    Jobs that an earlier call with the same ``folder`` has submitted, and that are still queued, are not resubmitted.

    Args:
        folder: for batch scripts, logs and the list of submitted jobs, on a disk that all nodes share.

    Raises:
        ConfigError: without SLURM, if ``warning`` leaves no time to train, or for an option that sbatch rejects.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "hydra/launcher=geexp_slurm: there is no sbatch on this machine. Start the sweep on a login node of the "
            "cluster, or leave the launcher out to train here."
        )
    require_extras("hydra/launcher=geexp_slurm", "slurm")
    if settings.minutes is not None and 60 * settings.minutes < 2 * settings.warning:
        raise ConfigError(
            f"hydra.launcher.warning={settings.warning}: with hydra.launcher.minutes={settings.minutes} a job would be "
            f"signalled before it has trained. Set hydra.launcher.minutes to at least {-(-settings.warning // 30)}, or "
            "a smaller warning."
        )
    record = folder / "submitted.json"
    ids = _still_queued(record)
    names = {job.folder: os.path.relpath(job.folder, folder) for job in jobs}
    arrays: dict[tuple[Any, ...], list[SweepJob]] = {}
    for job in jobs:
        if names[job.folder] not in ids:
            trainer = job.config.trainer
            arrays.setdefault((trainer.nodes, trainer.devices, trainer.accelerator == "cpu"), []).append(job)
    for (nodes, devices, _), array in sorted(arrays.items(), key=lambda item: len(item[1]), reverse=True):
        new = _submit_array(array, settings, folder)
        ids |= zip((names[job.folder] for job in array), new, strict=True)
        write_json(record, ids)
        number = new[0].partition("_")[0]
        log.info("SLURM job %s: %d jobs, each on %d x %d devices", number, len(array), nodes, devices)
    found = [(job, ids[names[job.folder]]) for job in jobs]
    return [Submitted(job, slurm_id, folder / f"{slurm_id}_0_log.out") for job, slurm_id in found]


def parameters(jobs: Sequence[SweepJob], settings: SlurmSettings, folder: Path) -> dict[str, Any]:
    """submitit's parameters for the batch script of an array."""
    trainer = jobs[0].config.trainer
    gpus = f"{settings.gpu}:{trainer.devices}" if settings.gpu else trainer.devices
    more = {"requeue": True, "signal": f"USR1@{settings.warning}", **settings.sbatch}
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]  # a failing rank ends the job; logs are appended
    if settings.cpus_per_task is not None:
        srun.append(f"--cpus-per-task={settings.cpus_per_task}")  # since 22.05 srun does not inherit it from sbatch
    as_they_are = ("partition", "account", "qos", "constraint", "mem", "cpus_per_task")
    return {key: getattr(settings, key) for key in as_they_are} | {
        "job_name": settings.name,
        "time": settings.minutes,
        "nodes": trainer.nodes,
        "ntasks_per_node": trainer.devices,
        "gpus_per_node": None if trainer.accelerator == "cpu" else gpus,
        "array_parallelism": settings.parallel or len(jobs),
        "additional_parameters": {key: value for key, value in more.items() if value not in (None, False)},
        "setup": [*settings.setup, *_before(folder)],
        "srun_args": srun,
        "teardown": _AFTER,
        "stderr_to_stdout": True,
        "wckey": None,
    }


def _before(folder: Path) -> list[str]:
    """The batch script's lines before srun.

    ``trap``: a preempted job's shell also gets the signal and must wait for srun; an ignored signal would be inherited
    by srun. ``job``: one job's SLURM_JOB_ID equals the number of its array, and would requeue the whole array.
    """
    return [
        "trap : TERM USR1",
        "job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
        f"export {NOTE}={shlex.quote(str(folder.absolute()))}/$job.requeue",
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))",
    ]


# After srun. A cancelled job saves and ends like a preempted one, but must not be requeued; neither a cancelled job nor
# one that SLURM requeues by itself is still RUNNING.
_AFTER = [
    "code=$?",
    f"if [[ $code -eq 0 && -e ${NOTE} ]]; then code={PREEMPTED}; fi",
    f'rm -f "${NOTE}"',
    f'if [[ $code -eq {PREEMPTED} && $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]; then',
    '    echo "requeueing job $job"',
    '    scontrol requeue "$job"',
    "fi",
    'exit "$code"',
]


def _submit_array(jobs: Sequence[SweepJob], settings: SlurmSettings, folder: Path) -> list[str]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    executor = SlurmExecutor(folder)
    executor.update_parameters(**parameters(jobs, settings, folder))
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    printed = io.StringIO()  # submitit prints sbatch's message before raising it
    try:
        with _outside_of_a_job(), contextlib.redirect_stderr(printed):
            submitted = executor.submit_array([partial(train_rank, job.arguments()) for job in jobs])
    except FailedJobError as error:
        for left in set(folder.iterdir()) - before:
            left.unlink()
        words = "; ".join(line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if line)
        raise ConfigError(f"hydra/launcher=geexp_slurm: sbatch failed: {words}") from error
    return [job.job_id for job in submitted]


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hide the variables of the SLURM job in which the sweep itself runs; sbatch would use them as options."""
    hidden = {}
    if "SLURM_JOB_ID" in os.environ:
        hidden = {k: v for k, v in os.environ.items() if k.startswith("SLURM_") and k != "SLURM_CONF"}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _still_queued(record: Path) -> dict[str, str]:
    if not record.is_file():
        return {}
    known = json.loads(record.read_text(encoding="utf-8"))
    try:
        states = queue()
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"hydra/launcher=geexp_slurm: SLURM does not answer: {error.stderr.strip()}") from error
    return {name: slurm_id for name, slurm_id in known.items() if states.get(slurm_id, _GONE).state not in _OVER}


# The queue


def queue() -> dict[str, InQueue]:
    """The jobs of this user in SLURM's queue, including those that ended minutes ago.

    squeue, unlike sacct, needs no accounting database and has no delay.

    Raises:
        subprocess.CalledProcessError: if the controller does not answer.
    """
    command = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%r|%N"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {slurm_id: InQueue(*words) for slurm_id, *words in (line.strip().split("|", 3) for line in lines)}


def watch(submitted: Sequence[Submitted], *, every: float = 15.0) -> Iterator[Change | None]:
    """Yield each change of a job's state until all are complete or failed, and None after each query of the queue.

    A job is complete if SLURM reports no failure and its run has a result. After Ctrl-C the jobs continue, and the
    command that cancels them is printed.
    """
    left = {entry.slurm_id: entry for entry in submitted}
    before = {entry.slurm_id: read_status(entry.job.folder) for entry in submitted}
    states: dict[str, str] = {}
    try:
        while left:
            try:
                known = queue()
            except subprocess.CalledProcessError as error:
                log.warning("squeue: %s Retrying.", " ".join(error.stderr.split()))
                time.sleep(every)
                continue
            for slurm_id, entry in list(left.items()):
                change = _change(entry, known.get(slurm_id, _GONE), before[slurm_id])
                if change.state in (COMPLETE, FAILED):
                    del left[slurm_id]
                if states.get(slurm_id) != change.state:
                    again = slurm_id in states and change.state == PENDING
                    states[slurm_id] = change.state
                    yield Change(entry, change.state, "preempted, resumes when scheduled again") if again else change
            yield None
            if left:
                time.sleep(every)
    except (KeyboardInterrupt, GeneratorExit):
        arrays = sorted({slurm_id.partition("_")[0] for slurm_id in left}, key=int)
        if arrays:
            stay = "The jobs stay in SLURM. The same command waits for them again. To cancel them:"
            print(f"\n{stay} scancel {' '.join(arrays)}", file=sys.stderr)
        raise


def _change(entry: Submitted, now: InQueue, status_before: Status | None) -> Change:
    if now.state in ("RUNNING", "COMPLETING"):
        return Change(entry, RUNNING, f"job {entry.slurm_id} on {now.nodes}")
    if now.state not in _OVER:
        return Change(entry, PENDING, f"job {entry.slurm_id}" + (f", {now.reason}" if now.reason != "None" else ""))
    folder = entry.job.folder
    if folder.is_dir():
        list(folder.iterdir())  # otherwise a network file system may answer from its cache
    if now.state in ("COMPLETED", "GONE") and Run(folder).result is not None:
        return Change(entry, COMPLETE, str(folder))
    status = read_status(folder)
    recorded = status.reason if status and status != status_before and status.state != "preempted" else None
    reason = _of_another_rank(entry.log) or recorded or _last_words(entry.log) or "no output"
    return Change(entry, FAILED, f"{reason} (job {entry.slurm_id}: {now.state.lower()}, log: {entry.log})")


def _of_another_rank(path: Path) -> str:
    """The reason if another rank failed first; srun names that rank in the output of rank 0."""
    ended = re.search(r"^srun: error: \S+: tasks? (\d+)\S*: (.*)", _text(path), re.MULTILINE)
    if ended is None or ended[1] == "0":
        return ""
    rank, how = ended.groups()
    other = path.with_name(path.name.replace("_0_log", f"_{rank}_log"))
    return f"rank {rank}: {_last_words(other) or how} ({other.name})"


def _last_words(path: Path) -> str:
    """The last line of the training's output, without lines from SLURM and submitit."""
    others = ("srun:", "slurmstepd", "scontrol:", "submitit ")
    own = [line for line in _text(path).splitlines() if not line.startswith(others)]
    return next((line.strip() for line in reversed(own) if line.strip()), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
