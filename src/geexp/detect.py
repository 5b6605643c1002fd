"""``python -m geexp.detect``: train a detector, which is geexp.train with one, or draw what a trained one finds."""

import json
import sys

from geexp.config.command import command
from geexp.config.extras import require_extras
from geexp.config.schema import DetectConfig

# What the paper's detection experiment chooses, where the command line does not.
CHOICES = {
    "model": "resnet50",
    "ge": "none",
    "data": "coco2014",
    "detector": "c4",
    "schedule": "coco_faster_rcnn",
    "optim": "coco",
}


def main() -> None:
    modes = [argument.partition("=")[2] for argument in sys.argv[1:] if argument.startswith("mode=")]
    if modes and modes[-1] != "train":
        predict()
        return
    from geexp.train import main as train

    sys.argv[1:] = training_arguments(sys.argv[1:])
    train()


def training_arguments(arguments: list[str]) -> list[str]:
    """Those of geexp.train; a preset (experiment=) chooses for itself."""
    arguments = [argument for argument in arguments if not argument.startswith("mode=")]
    named = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    if named & {"experiment", "sweep"}:
        return arguments
    return [f"{group}={choice}" for group, choice in CHOICES.items() if group not in named] + arguments


@command("detect", DetectConfig)
def predict(config: DetectConfig) -> None:
    require_extras("geexp.detect", "detection")
    from geexp.detection.predicting import draw_predictions

    found, picture = draw_predictions(config)
    if config.format == "json":
        print(json.dumps({"images": found, "picture": str(picture)}, ensure_ascii=False))
    else:
        for image, objects in found.items():
            said = ", ".join(f"{one['class']} {one['score']:.2f}" for one in objects) or "nothing"
            print(f"{image}: {said}")
    print(f"picture: {picture}", file=sys.stderr)


if __name__ == "__main__":
    main()
