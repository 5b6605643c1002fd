"""What a run reads, for its ``data.json``; of class folders and packs without opening an image. No torch."""

import os
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from geexp.config.compose import is_ours
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.folder_index import read_folder
from geexp.data.presence import pack_folder
from geexp.runs.data_record import DataRecord, SplitRecord, digest_of


def source_of(data: DataConfig, feed: FeedConfig) -> str | None:
    """``data.root=<folder>`` or ``feed.pack=<folder>``, without links; None if the data are in no folder."""
    if feed.name == "pack":
        return f"feed.pack={os.path.realpath(pack_folder(data, feed))}"
    return None if data.root is None else f"data.root={os.path.realpath(data.root)}"


def names_record(
    classes: list[str], labels: np.ndarray, names: np.ndarray, ends: np.ndarray, *, with_class: bool
) -> SplitRecord:
    """The record of the first ``len(labels)`` images, the same for a folder and for a pack of it.

    Args:
        names, ends: as ``join_names`` makes them.
        with_class: whether these names begin with ``<class>/``.
    """
    content = names.tobytes()
    classes_of = [b"" if with_class else os.fsencode(f"{name}/") for name in classes]
    places = pairwise([0, *ends.tolist()])
    whole = (
        classes_of[label] + content[start:end] for label, (start, end) in zip(labels.tolist(), places, strict=False)
    )
    return SplitRecord(len(labels), digest_of(whole))


def stored_record(data: DataConfig, feed: FeedConfig) -> DataRecord | None:
    """The record of class folders, from their cached index, or of a pack; None for data that must be opened for it.

    Raises:
        DataError: for class folders that cannot be read.
    """
    packed = feed.name == "pack"
    if not packed and not (data.kind == "files" and is_ours(data._target_)):
        return None
    splits = {}
    for split in ("train", "val"):
        if packed:
            try:
                with np.load(pack_folder(data, feed) / f"{split}.npz", allow_pickle=False) as index:
                    arrays = [index[key] for key in ("classes", "labels", "names", "name_ends")]
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                return None
        else:
            found = read_folder(Path(str(data.root)).absolute() / split)
            arrays = [found.classes, found.labels, found.names, found.ends]
        classes, labels, names, ends = arrays
        kept = classes[: data.keep_classes].tolist()
        labels = labels[: np.searchsorted(labels, len(kept))]
        splits[split] = names_record(kept, labels, names, ends, with_class=packed)
        if split == "train":
            trained = kept
    return DataRecord.of(source_of(data, feed), trained, **splits)
