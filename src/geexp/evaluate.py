"""``python -m geexp.evaluate``: measure a trained network again."""

import json

from geexp.config.command import command
from geexp.config.ranks import rank, require_ranks
from geexp.config.schema import EvaluateConfig


@command("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    require_ranks("evaluate", devices=config.devices)
    from geexp.training.evaluation import evaluate

    result = evaluate(config)
    if rank() != 0:
        return
    if config.format == "json":
        print(json.dumps(result))
        return
    measured, recorded = result["measured"], result["recorded"]
    print(f"{result['checkpoint']} (after epoch {result['epoch']})")
    for name in ("top1", "top5"):
        record = f"recorded {recorded[f'val/{name}_error']:.2f} %" if recorded else "nothing recorded"
        wrong, images = measured[f"val/{name}_wrong"], measured["val/images"]
        print(
            f"{name[:3]}-{name[3]} error {measured[f'val/{name}_error']:.2f} %  ({wrong} of {images} images)  {record}"
        )
    if recorded:
        print("identical to the record" if result["identical"] else "NOT identical to the record")


if __name__ == "__main__":
    main()
