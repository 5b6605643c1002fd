"""``python -m geexp.train``: train a network, on one device or several, or several networks with ``-m``."""

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from geexp.config.command import command
from geexp.config.process import PlainConsole
from geexp.config.ranks import rank, require_ranks, restarted, world_size
from geexp.config.schema import TrainConfig
from geexp.launching.jobs import folder_argument, require_inputs, require_same_data, task_of, with_command
from geexp.launching.plan import plan, show_plan
from geexp.launching.supervisor import in_a_tree, stop_with_parent, train_in_ranks
from geexp.runs.job import make_job, register_resolvers
from geexp.runs.metrics import coco_numbers
from geexp.runs.run import Run


@command("train", TrainConfig, sweeps=True, prepare=register_resolvers)
def main(config: TrainConfig) -> float | None:
    job = make_job(config, Path(HydraConfig.get().runtime.output_dir))
    if config.dry_run:  # set in a file; on the command line dry_run is handled as a sweep, without a folder
        hydra = HydraConfig.get()
        show_plan(
            plan([with_command(job, hydra, hydra.overrides.task)]), PlainConsole(quiet=rank() != 0), commands=True
        )
        return None
    start_over = (config.force or config.resume is False) and not restarted()
    result = None if start_over else Run(job.folder).result
    if result is not None:
        job.require_same(result.identity)
        require_same_data(job)
        print(f"finished earlier (force=true trains it again): {job.folder}", file=sys.stderr)
    else:
        require_inputs(config)
        if needs_ranks(config):
            devices, arguments = config.trainer.devices, [*sys.argv[1:], *folder_argument(job)]
            train_in_ranks(arguments, devices=devices, grace=config.launcher.grace)
            return None  # rank 0 has printed the result
        if in_a_tree():  # a killed torchrun, unlike our launcher, would leave its ranks behind
            stop_with_parent()
        require_ranks("train", devices=config.trainer.devices, nodes=config.trainer.nodes)
        from geexp.training.run import train

        result = train(job, task_of(config))
    if result is None:  # not rank 0
        return None
    last, best, score = result.metrics["last"], result.metrics["best"], result.score
    print(
        f"{score.name} {last[score.key]:.2f} % after epoch {last['epoch']}, "
        f"best {best[score.key]:.2f} % after epoch {best['epoch']}: {job.folder}"
    )
    for name, value in coco_numbers(last):
        print(f"  {name:<10} {value}")
    return score.loss(last)


def needs_ranks(config: TrainConfig) -> bool:
    """Whether this process was started alone for a run on several devices of one node, and so must start the ranks."""
    alone = world_size() == 1 and HydraConfig.get().mode == RunMode.RUN
    return alone and config.trainer.devices > 1 and config.trainer.nodes == 1


if __name__ == "__main__":
    main()
