"""``python -m geexp.train``: train a network, or several with ``-m``."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from geexp.config.command import command
from geexp.config.identity import require_same_identity
from geexp.config.ranks import require_ranks, restarted
from geexp.config.schema import TrainConfig
from geexp.data.presence import require_data
from geexp.records.run_files import read_result


def compare(folders: list[Path]) -> None:
    from geexp.results.comparison import compare_runs

    compare_runs(folders)


@command("train", TrainConfig, after_sweep=compare)
def main(config: TrainConfig) -> float | None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    start_over = (config.force or config.resume is False) and not restarted()
    result: dict[str, Any] | None = None if start_over else read_result(folder)
    if result is not None:
        require_same_identity(folder, result["identity"], config)
        print(f"finished earlier (force=true trains it again): {folder}", file=sys.stderr)
    else:
        require_ranks("train", devices=config.trainer.devices, nodes=config.trainer.nodes)
        require_data(config.data, config.feed)
        from geexp.training.run import train

        result = train(config, folder)
    if result is None:  # not the first rank
        return None
    last, best = result["metrics"]["last"], result["metrics"]["best"]
    print(
        f"top-1 error {last['val/top1_error']:.2f} % after epoch {last['epoch']}, "
        f"best {best['val/top1_error']:.2f} % after epoch {best['epoch']}: {folder}"
    )
    return last["val/top1_error"]


if __name__ == "__main__":
    main()
