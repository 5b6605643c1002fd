"""``python -m geexp.train``: train a network, on one device or several, or several networks with ``-m``."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from geexp.config.command import command
from geexp.config.errors import ConfigError
from geexp.config.extras import require_extras
from geexp.config.ranks import require_ranks, restarted, world_size
from geexp.config.schema import TrainConfig
from geexp.data.presence import require_data
from geexp.launching.supervisor import in_a_tree, stop_with_parent
from geexp.runs.job import Job, make_job, register_resolvers
from geexp.runs.metrics import coco_numbers
from geexp.runs.run import Run
from geexp.runs.weights_file import require_backbone


@command("train", TrainConfig, sweeps=True, prepare=register_resolvers)
def main(config: TrainConfig) -> float | None:
    job = make_job(config, Path(HydraConfig.get().runtime.output_dir))
    if config.dry_run:  # in a file; on the command line it makes a sweep, which leaves no folder
        raise ConfigError("dry_run=true: say it on the command line; from a file it comes too late.")
    start_over = (config.force or config.resume is False) and not restarted()
    result = None if start_over else Run(job.folder).result
    if result is not None:
        job.require_same(result.identity)
        print(f"finished earlier (force=true trains it again): {job.folder}", file=sys.stderr)
    else:
        require_data(config.data, config.feed)
        if config.detects:
            require_extras("a detector", "detection")
            require_backbone(config)
        if needs_ranks(config):
            start_ranks(job)
            return None  # the first of them has printed the result
        if in_a_tree():  # torchrun, unlike us, would leave its ranks behind when it is killed
            stop_with_parent()
        require_ranks("train", devices=config.trainer.devices, nodes=config.trainer.nodes)
        from geexp.training.run import train

        result = train(job, task_of(config))
    if result is None:  # not the first rank
        return None
    last, best, score = result.metrics["last"], result.metrics["best"], result.score
    print(
        f"{score.name} {last[score.key]:.2f} % after epoch {last['epoch']}, "
        f"best {best[score.key]:.2f} % after epoch {best['epoch']}: {job.folder}"
    )
    for name, value in coco_numbers(last):
        print(f"  {name:<10} {value}")
    return score.loss(last)


def task_of(config: TrainConfig) -> Any:
    """What a configuration trains, as a ``geexp.training.task.Task``."""
    if config.detects:
        from geexp.detection.task import Detection

        return Detection()
    from geexp.training.classification import Classification

    return Classification()


def needs_ranks(config: TrainConfig) -> bool:
    """Whether this one process was started by hand for a run of several, which it can start itself."""
    alone = world_size() == 1 and HydraConfig.get().mode == RunMode.RUN
    return alone and config.trainer.devices > 1 and config.trainer.nodes == 1


def start_ranks(job: Job) -> None:
    """Train in one process per device, and end as these end."""
    from geexp.launching.jobs import folder_argument
    from geexp.launching.processes import thread_limit
    from geexp.launching.supervisor import train_in_ranks

    devices, grace = job.config.trainer.devices, job.config.launcher.grace
    arguments = [*sys.argv[1:], *folder_argument(job)]
    train_in_ranks(arguments, devices=devices, grace=grace, environment=thread_limit(devices))


if __name__ == "__main__":
    main()
