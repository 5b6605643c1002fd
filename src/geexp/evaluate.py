"""``python -m geexp.evaluate``: evaluate a checkpoint and compare with the recorded metrics."""

import json
from dataclasses import asdict
from pathlib import Path

from geexp.config.command import command
from geexp.config.ranks import rank, require_ranks
from geexp.config.schema import EvaluateConfig
from geexp.launching.jobs import task_of


@command("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    require_ranks("evaluate", devices=config.devices)
    from geexp.training.checkpoints import load_checkpoint
    from geexp.training.evaluation import checkpoint_of, evaluate

    path = Path(config.checkpoint) if config.checkpoint else checkpoint_of(config.run, config.which)
    checkpoint = load_checkpoint(path)
    task = task_of(checkpoint.config)
    result = evaluate(task, checkpoint, config)
    if rank() != 0:
        return
    if config.format == "json":
        print(json.dumps(asdict(result)))
        return
    print(f"{result.checkpoint} (after epoch {result.epoch})")
    print("\n".join(task.describe(result.measured, result.recorded)))
    if result.identical is not None:
        print("identical to the record" if result.identical else "NOT identical to the record")


if __name__ == "__main__":
    main()
