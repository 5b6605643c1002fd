"""Generate the small detection set of Fashion-MNIST items in COCO's layout.

    python scripts/make_fashion_coco.py <folder> [--train 800] [--val 200] [--size 128] [--most-items 5] [--seed 0]

Needs no download. With the default options it equals the set that data=fashion_coco_mini generates.
"""

import argparse
import logging
import sys
from pathlib import Path

from geexp.config.errors import UserError
from geexp.detection.fashion_coco import Recipe, make_fashion_coco


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in ("train", "val", "size", "most_items", "smallest", "largest", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Recipe(), name))
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        made = make_fashion_coco(folder, Recipe(**options))
    except UserError as error:
        print(f"make_fashion_coco: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{folder}: {'generated' if made else 'already exists'}")


if __name__ == "__main__":
    main()
