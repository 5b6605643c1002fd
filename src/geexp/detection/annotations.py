"""COCO's instance annotations as arrays, from files of COCO and of other tools.

Everything that a file may write in another way is settled here; README.md beside this file lists it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np

from geexp.config.errors import DataError
from geexp.data.parallel import waiting

Row = dict[str, Any]

INVALID_BOX = "annotations without a valid bbox"
UNKNOWN_IMAGE = "annotations of unlisted images"

_LISTS = ("images", "annotations", "categories")
# pycocotools keeps ids in float64, which is exact up to 2^53.
_EXACT_ID = re.compile(r"0|-?[1-9][0-9]{0,14}")
_LARGEST = 1e9  # pixels; beyond it a coordinate is damaged
_NAMED = 5  # annotations of one kind that a message names


@dataclass(frozen=True)
class Annotations:
    """N images with M objects of K classes; the objects are sorted by image.

    Attributes:
        names: ``file_name`` of the images.
        sizes: (H, W) of the images, int32 ``[N, 2]``; 0 where the file has none.
        image_ids: int64 ``[N]``: the file's, or 1 … N if those are not all integers.
        category_ids: int64 ``[K]``, increasing, likewise.
        owners: the index of the image of each object, int64 ``[M]``.
        labels: 1 … K, int64 ``[M]``, in the order of the file's category ids.
        bbox: x, y, width, height in pixels, float64 ``[M, 4]``; finite, otherwise as in the file.
        area: in pixels, float64 ``[M]``.
        crowd: bool ``[M]``.
        left_out: numbers of annotations that cannot be used, by reason.
        notes: one phrase for each peculiarity of the file.
    """

    names: list[str]
    sizes: np.ndarray
    image_ids: np.ndarray
    classes: list[str]
    category_ids: np.ndarray
    owners: np.ndarray
    labels: np.ndarray
    bbox: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    left_out: dict[str, int]
    notes: list[str]


def read_annotations(path: Path) -> Annotations:
    """Read ``instances_<split>.json``.

    Raises:
        DataError: for a file that is missing, damaged, of another format or inconsistent, and if it has annotations but
            none can be used.
    """
    images, objects, categories = _read_lists(path)
    notes: list[str] = []
    image_rows, category_rows = _by_id(path, "images", images, notes), _by_id(path, "categories", categories, notes)
    category_keys = sorted(category_rows, key=int if _are_integers(category_rows) else None)
    classes = [_text(path, "categories", category_rows[key], "name") for key in category_keys]
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        notes.append(f"categories with the same name, kept apart: {_first(repeated)}")

    place = {key: position for position, key in enumerate(image_rows)}
    left_out: dict[str, list[str]] = {INVALID_BOX: [], UNKNOWN_IMAGE: []}
    kept: list[tuple[int, Row, list[float]]] = []
    for position, row in enumerate(objects):
        owner, box = place.get(_key(row.get("image_id"))), _box(row.get("bbox"))
        if owner is None:
            left_out[UNKNOWN_IMAGE].append(_named(position, row, "image_id"))
        elif box is None:
            left_out[INVALID_BOX].append(_named(position, row, "bbox"))
        else:
            kept.append((owner, row, box))
    counts = {reason: len(names) for reason, names in left_out.items() if names}
    notes += [f"{reason}: {count} left out, such as {_first(left_out[reason])}" for reason, count in counts.items()]
    if objects and not kept:
        raise DataError(f"{path}: none of the {len(objects)} annotations can be used. {'; '.join(notes)}.")
    kept.sort(key=lambda one: one[0])
    rows, bbox = [row for _, row, _ in kept], np.array([box for *_, box in kept]).reshape(-1, 4)
    area = np.array([_number(row.get("area")) for row in rows])
    unknown = ~((area > 0) & np.isfinite(area))
    area[unknown] = bbox[unknown, 2:].clip(min=0).prod(axis=1)
    if computed := int((area[unknown] > 0).sum()):
        notes.append(f"annotations without an area, taken as width x height of the bbox: {computed}")
    return Annotations(
        names=[_text(path, "images", row, "file_name") for row in image_rows.values()],
        sizes=np.array([_size(row) for row in image_rows.values()], dtype=np.int32).reshape(-1, 2),
        image_ids=_numbers(list(image_rows)),
        classes=classes,
        category_ids=_numbers(category_keys),
        owners=np.array([owner for owner, *_ in kept], dtype=np.int64),
        labels=_labels(path, rows, category_keys),
        bbox=bbox,
        area=area,
        crowd=np.array([_number(row.get("iscrowd")) > 0 for row in rows], dtype=bool),
        left_out=counts,
        notes=notes,
    )


def _read_lists(path: Path) -> list[list[Row]]:
    """The images, annotations and categories of the file."""
    content = _read_json(path)
    lists: list[Any] = [content.get(key) for key in _LISTS] if isinstance(content, dict) else []
    if not (lists and all(isinstance(rows, list) for rows in lists)):
        found = f"a {type(content).__name__}"
        if lists:
            missing = [key for key, rows in zip(_LISTS, lists, strict=True) if not isinstance(rows, list)]
            found = f"an object without the list {' and '.join(missing)}; its keys are {', '.join(list(content)[:8])}"
        raise DataError(
            f"{path}: not in the format of COCO's instance annotations, an object with the lists images, annotations "
            f"and categories, but {found}. Other files of COCO, such as captions or results, cannot be used."
        )
    for key, rows in zip(_LISTS, lists, strict=True):
        wrong = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
        if wrong is not None:
            raise DataError(f"{path}: {key}[{wrong}] is {shortened(rows[wrong])}, but must be an object.")
    return lists


def _read_json(path: Path) -> Any:
    try:
        with waiting(f"reading {path}"):
            return json.loads(path.read_bytes())  # in UTF-8, -16 or -32, with or without a byte order mark
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file. COCO's layout below data.root is annotations/instances_<split>.json and the images "
            "in <split>/."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError, or UnicodeDecodeError for binary content
        raise DataError(
            f"{path}: not a complete JSON file ({error}). Expected are COCO's instance annotations; if the file was "
            "cut short, fetch it again."
        ) from error


def _by_id(path: Path, what: str, rows: list[Row], notes: list[str]) -> dict[str, Row]:
    """The rows by id. One that is repeated without a difference is read once."""
    found: dict[str, Row] = {}
    for position, row in enumerate(rows):
        key = _key(row.get("id"))
        if not key:
            raise DataError(f"{path}: {what}[{position}] has no id: a number or a text is needed.")
        if found.setdefault(key, row) != row:
            raise DataError(f"{path}: two {what} have the same id, {key}, and differ. Give them ids of their own.")
    if len(found) < len(rows):
        notes.append(f"repeated {what}, read once: {len(rows) - len(found)}")
    return found


def _key(value: Any) -> str:
    """An id as text, so that 7, 7.0 and "7" are the same; empty if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""


def _are_integers(keys: Collection[str]) -> bool:
    return all(map(_EXACT_ID.fullmatch, keys))


def _numbers(keys: list[str]) -> np.ndarray:
    return np.array([int(key) for key in keys] if _are_integers(keys) else range(1, len(keys) + 1), dtype=np.int64)


def _labels(path: Path, rows: list[Row], category_keys: list[str]) -> np.ndarray:
    label = {key: position for position, key in enumerate(category_keys, start=1)}
    labels = [label.get(_key(row.get("category_id"))) for row in rows]
    unknown = [_named(i, row, "category_id") for i, row in enumerate(rows) if labels[i] is None]
    if unknown:  # without a class they would be learnt as background
        raise DataError(
            f"{path}: the category_id of {len(unknown)} annotations is not listed in categories: {_first(unknown)}. "
            "Add the categories, or remove the annotations."
        )
    return np.array(labels, dtype=np.int64)


def _text(path: Path, what: str, row: Row, key: str) -> str:
    value = row.get(key)
    if value is None or value == "" or isinstance(value, list | dict):
        raise DataError(f"{path}: {what} with id {row['id']} has no {key}.")
    return str(value)


def _number(value: Any) -> float:
    """NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _box(value: Any) -> list[float] | None:
    box = [_number(one) for one in value] if isinstance(value, list) else []
    return box if len(box) == 4 and all(abs(one) < _LARGEST for one in box) else None


def _size(row: Row) -> tuple[int, int]:
    """(H, W), (0, 0) if one of the two is no number of pixels."""
    height, width = (_number(row.get(key)) for key in ("height", "width"))
    return (int(height), int(width)) if all(1 <= one < _LARGEST for one in (height, width)) else (0, 0)


def _named(position: int, row: Row, key: str) -> str:
    name = f"annotation {row['id']}" if "id" in row else f"annotations[{position}]"
    return f"{name} ({key} {shortened(row[key]) if key in row else 'missing'})"


def _first(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
