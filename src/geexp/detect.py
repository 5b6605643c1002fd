"""``python -m geexp.detect``: train a detector (geexp.train with a detector's defaults), or draw its detections."""

import json
import sys

from geexp.config.command import command
from geexp.config.extras import require_extras
from geexp.config.schema import DetectConfig

# The groups of the paper's detection experiment, unless the command line chooses others.
DEFAULTS = {
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
    """The arguments for geexp.train; with a preset (``experiment=``, ``sweep=``) no defaults are added."""
    arguments = [argument for argument in arguments if not argument.startswith("mode=")]
    named = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    if named & {"experiment", "sweep"}:
        return arguments
    return [f"{group}={choice}" for group, choice in DEFAULTS.items() if group not in named] + arguments


@command("detect", DetectConfig)
def predict(config: DetectConfig) -> None:
    require_extras("geexp.detect", "detection")
    from geexp.detection.predicting import draw_predictions

    images, picture = draw_predictions(config)
    if config.format == "json":
        print(json.dumps({"images": images, "picture": str(picture)}))
    else:
        for image, objects in images.items():
            listed = ", ".join(f"{one['class']} {one['score']:.2f}" for one in objects)
            print(f"{image}: {listed or 'nothing'}")
    print(f"picture: {picture}", file=sys.stderr)


if __name__ == "__main__":
    main()
