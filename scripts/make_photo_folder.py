"""Make a folder of realistic images that is arranged as ImageNet is, for trying out and measuring feeds.

    python scripts/make_photo_folder.py <folder> [--classes 1000] [--train 3000] [--val 1000] [--seed 0]

The images are windows of photographs in the public domain that scikit-image and matplotlib carry; their classes mean
nothing, so nothing can be learnt from them.
"""

import argparse
import sys
from pathlib import Path

from geexp.benchmarks.photographs import make_photo_folder
from geexp.config.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--train", type=int, default=3000, help="images, of all classes together")
    parser.add_argument("--val", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    try:
        made = make_photo_folder(options.pop("folder"), **options)
    except UserError as error:
        print(f"make_photo_folder: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    images = made.train + made.val
    print(
        f"{made.folder}: {made.train} + {made.val} images in {made.classes} classes, {made.bytes / 1e6:,.0f} MB", end=""
    )
    print(f" ({made.bytes / images / 1e3:.0f} KB an image)")
    print(f"train on it: python -m geexp.train data=imagenet data.root={made.folder} data.num_classes={made.classes}")


if __name__ == "__main__":
    main()
