"""Whether the data are there: checked before torch is imported or a run begins."""

import shlex
from pathlib import Path

from geexp.config.arguments import quoted_override
from geexp.config.class_folders import is_there
from geexp.config.errors import ConfigError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.registry import options
from geexp.runs.identity import recipe_slug


def require_data(data: DataConfig, feed: FeedConfig) -> None:
    """Raise ``ConfigError`` if something is missing: what was looked for, where, and the two ways to go on.

    ``DataError`` if a folder on the way to it cannot be read.
    """
    if not data.requires:
        return
    if feed.name == "pack":
        _require_pack(data, feed)
        return
    root = _root_of(data)
    if data.download and data.downloadable:
        return
    missing = [forms[0] for forms in data.requires if not any(is_there(root / form) for form in forms)]
    if not missing:
        return
    if data.kind == "boxes":
        second = "or unpack COCO's archives of images and of annotations there, as they come"
    elif data.kind == "files":
        second = "or arrange the images as train/<class>/*.JPEG and val/<class>/*.JPEG there"
        if data.archives:
            second += (
                " (downloading it needs an account with its owners), or make a pack of the official archives "
                "with python -m geexp.pack and set feed=pack"
            )
    elif data.downloadable:
        second = "or let it be downloaded there with data.download=true"
    else:
        second = "or put them there"
    raise ConfigError(
        f"data={data.name}: {' and '.join(missing)} not found in {root.absolute()} (data.root). "
        f"Either set data.root=<folder>, or GEEXP_DATA in the environment, {second}."
    )


def pack_folder(data: DataConfig, feed: FeedConfig) -> Path:
    """The folder of a pack: ``feed.pack``, or ``pack-<recipe>`` beside the images."""
    folder = Path(feed.pack) if feed.pack else _root_of(data) / f"pack-{recipe_slug(data.recipe)}"
    return folder.absolute()


def _root_of(data: DataConfig) -> Path:
    if data.root is None:
        raise ConfigError(f"data.root=null: data={data.name} is read from a folder; set it with data.root=<folder>.")
    return Path(data.root)


def _require_pack(data: DataConfig, feed: FeedConfig) -> None:
    folder = pack_folder(data, feed)
    missing = [f"{split}{suffix}" for split in ("train", "val") for suffix in (".npz", ".bin")]
    missing = [name for name in missing if not is_there(folder / name)]
    if missing:
        raise ConfigError(
            f"feed=pack: {' and '.join(missing)} not found in {folder}. Either set feed.pack=<folder>, or make the "
            f"pack: {_packing_command(data, feed)}"
        )


def _packing_command(data: DataConfig, feed: FeedConfig) -> str:
    by_target = [name for name, entry in options("data").items() if entry.get("_target_") == data._target_]
    option = by_target[0] if by_target and data.name not in options("data") else data.name
    words = [f"data={option}", quoted_override("data.root", str(data.root)), f"recipe={data.recipe.name}"]
    return shlex.join(
        ["python", "-m", "geexp.pack", *words, *([quoted_override("out", feed.pack)] if feed.pack else [])]
    )


def pack_source(data: DataConfig, wanted: str) -> str:
    """The source of a pack, ``folders`` or ``archives``; ``auto`` takes folders if they are there.

    Raises:
        ConfigError: if something is missing.
    """
    root = _root_of(data)
    needed = {"folders": [forms[0] for forms in data.requires]}
    if data.archives:
        needed["archives"] = data.archives
    kinds = list(needed) if wanted == "auto" else [wanted]
    missing = {kind: [name for name in needed[kind] if not is_there(root / name)] for kind in kinds}
    for kind in kinds:
        if not missing[kind]:
            return kind
    looked_for = ", and no ".join(" or ".join(names) for names in missing.values())
    raise ConfigError(
        f"source={wanted}: no {looked_for} found in {root.absolute()} (data.root). A pack is made of class folders "
        "(train/<class>/*.JPEG and val/<class>/*.JPEG) or of the three official archives as downloaded. Set their "
        "folder with data.root=<folder> or GEEXP_DATA in the environment."
    )
