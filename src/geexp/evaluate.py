"""``python -m geexp.evaluate``: measure a trained network again."""

import json
from typing import Any

from geexp.config.command import command
from geexp.config.ranks import rank, require_ranks
from geexp.config.schema import EvaluateConfig
from geexp.runs.metrics import AP, coco_numbers, score_of


@command("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    require_ranks("evaluate", devices=config.devices)
    from geexp.training.checkpoints import FORMAT, configuration_of, load_checkpoint
    from geexp.training.evaluation import checkpoint_to_measure, evaluate, trained_classifier

    path = checkpoint_to_measure(config)
    if configuration_of(path, load_checkpoint(path)[FORMAT]).detects:
        from geexp.detection.restoring import trained_detector

        result = evaluate(trained_detector(path, config), path, config)
    else:
        result = evaluate(trained_classifier(path, config), path, config)
    if rank() != 0:
        return
    if config.format == "json":
        print(json.dumps(result))
        return
    measured, recorded = result["measured"], result["recorded"]
    print(f"{result['checkpoint']} (after epoch {result['epoch']})")
    if score_of(measured) is AP:
        for (name, now), (_, then) in zip(coco_numbers(measured), coco_numbers(recorded or measured), strict=True):
            print(f"  {name:<10} {now}  {f'recorded {then}' if recorded else 'nothing recorded'}")
    else:
        _print_errors(measured, recorded)
    if recorded:
        print("identical to the record" if result["identical"] else "NOT identical to the record")


def _print_errors(measured: dict[str, Any], recorded: dict[str, Any]) -> None:
    for name in ("top1", "top5"):
        record = f"recorded {recorded[f'val/{name}_error']:.2f} %" if recorded else "nothing recorded"
        wrong, images = measured[f"val/{name}_wrong"], measured["val/images"]
        print(
            f"{name[:3]}-{name[3]} error {measured[f'val/{name}_error']:.2f} %  ({wrong} of {images} images)  {record}"
        )


if __name__ == "__main__":
    main()
