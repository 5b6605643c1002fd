"""``python -m geexp.check_data``: read every image of a data set once, and list bad ones."""

from geexp.config.command import command
from geexp.config.errors import DataError
from geexp.config.schema import CheckDataConfig
from geexp.data.presence import require_data


@command("check_data", CheckDataConfig)
def main(config: CheckDataConfig) -> None:
    require_data(config.data, config.feed)
    if config.data.kind == "boxes":
        check_detection_data(config)
        return
    from geexp.data.check import as_json, as_text, check_images
    from geexp.data.datasets import open_dataset
    from geexp.data.parallel import processors

    # Open both splits before reading one, so that an error in the second is reported at once.
    opened = {split: open_dataset(config.data, config.feed, train=split == "train") for split in ("train", "val")}
    decode = "pil" if config.feed.name == "reference" else config.feed.decode
    workers = config.workers or processors()
    splits = {
        split: check_images(images, decode, workers=workers, what=f"reading {split}")
        for split, images in opened.items()
    }
    bad = sum(len(report.unreadable) for report in splits.values())
    print(as_json(config, splits, unreadable=bad) if config.format == "json" else as_text(config, splits), flush=True)
    if bad:
        raise DataError(
            f"{bad:,} of {sum(map(len, opened.values())):,} images cannot be read. Either replace the files, or train "
            "without them: feed.on_error=skip."
        )


def check_detection_data(config: CheckDataConfig) -> None:
    """Check the splits of a set with boxes."""
    from geexp.data.check import as_json
    from geexp.data.parallel import processors
    from geexp.detection.check import as_text, check_split
    from geexp.detection.coco import require_same_classes
    from geexp.detection.data import open_split

    opened = {split: open_split(config.data, train=split == "train", everything=True) for split in ("train", "val")}
    require_same_classes(*opened.values())
    workers = config.workers or processors()
    splits = {
        split: check_split(images, config.feed.decode, workers=workers, what=f"reading {split}")
        for split, images in opened.items()
    }
    bad = sum(len(report.bad) for report in splits.values())
    print(as_json(config, splits, bad=bad) if config.format == "json" else as_text(config, splits), flush=True)
    if bad:
        raise DataError(
            f"{bad:,} of {sum(map(len, opened.values())):,} images are missing, cannot be read, or have another size "
            "than annotated. Replace the files or correct their annotations, or train without them: feed.on_error=skip."
        )


if __name__ == "__main__":
    main()
