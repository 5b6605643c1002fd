"""``python -m geexp.pack``: pack a data set of image files into one large file per split, optionally shrunken."""

import json
import shlex
from dataclasses import asdict

from hydra.core.hydra_config import HydraConfig

from geexp.config.arguments import quoted_override
from geexp.config.command import command
from geexp.config.schema import FeedConfig, PackConfig
from geexp.data.presence import pack_folder, pack_source


@command("pack", PackConfig)
def main(config: PackConfig) -> None:
    kind = pack_source(config.data, config.source)
    folder = pack_folder(config.data, FeedConfig("pack", pack=config.out))
    from geexp.data.packing import open_sources, pack_split
    from geexp.data.parallel import processors

    packs = [
        pack_split(
            source,
            folder,
            split,
            config.data.recipe,
            workers=config.workers or processors(),
            on_error=config.on_error,
            force=config.force,
        )
        for split, source in open_sources(config.data, kind).items()
    ]
    if config.format == "json":
        print(json.dumps({"packs": [asdict(pack) for pack in packs], "train": training_command(config)}))
        return
    for pack in packs:
        took = "there already" if pack.seconds is None else f"{pack.seconds:,.1f} s"
        without = f", {pack.left_out} left out" if pack.left_out else ""
        print(
            f"{pack.split:5}  {pack.images:,} images{without}  {pack.classes:,} classes  {pack.bytes:,} bytes  {took}  "
            f"{pack.path}"
        )
    print(f"train on it:  {training_command(config)}")


def training_command(config: PackConfig) -> str:
    """The command that trains on the pack, with the same data and recipe."""
    words = [word for word in HydraConfig.get().overrides.task if word.startswith(("data=", "data.", "recipe="))]
    if not any(word.startswith("data=") for word in words):
        words.insert(0, f"data={config.data.name}")
    folder = [quoted_override("feed.pack", config.out)] if config.out else []
    return shlex.join(["python", "-m", "geexp.train", *words, "feed=pack", *folder])


if __name__ == "__main__":
    main()
