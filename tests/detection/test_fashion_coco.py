"""The detection set made from Fashion-MNIST."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from geexp.config.errors import DataError
from geexp.data.decode import Decoder
from geexp.detection import fashion_coco
from geexp.detection.coco import CocoImages
from geexp.detection.data import read_image
from geexp.detection.fashion_coco import CLASSES, Recipe, make_fashion_coco

FEW = Recipe(train=12, val=6)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fashion") / "coco"
    assert make_fashion_coco(folder, FEW)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_bytes_in_every_run(made, tmp_path):
    make_fashion_coco(tmp_path / "again", FEW)
    assert digests(tmp_path / "again") == digests(made)
    assert len(digests(made)) == 12 + 6 + 2
    make_fashion_coco(tmp_path / "other", Recipe(train=12, val=6, seed=1))
    assert not digests(made).items() & digests(tmp_path / "other").items()


def test_it_is_made_once_and_whole(made, tmp_path):
    before = digests(made)
    assert not make_fashion_coco(made, FEW)
    with pytest.raises(DataError, match="another recipe"):
        make_fashion_coco(made, Recipe(train=1, val=1))
    assert digests(made) == before
    in_the_way = tmp_path / "something"
    (in_the_way / "else").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be made there: Directory not empty"):
        make_fashion_coco(in_the_way, Recipe(train=1, val=1))
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


def test_it_reads_like_coco(made):
    train, val = CocoImages(made, "train", train=True), CocoImages(made, "val", train=False)
    assert train.classes == val.classes == list(CLASSES)
    assert (len(train), len(val)) == (12, 6)
    assert train.left_out == {"images without a box": 0, "crowds": 0, "boxes without an area": 0}
    for i in range(12):
        target = train.target(i)
        assert 1 <= len(target["labels"]) <= 5
        assert target["boxes"].min() >= 0
        assert target["boxes"].max() <= 128
        assert read_image(Decoder(), train.name(i)).shape == (3, 128, 128)
    content = json.loads((made / "annotations/instances_train.json").read_text())
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    for one in content["annotations"]:
        _, _, width, height = one["bbox"]
        assert 0 < one["area"] <= width * height
    assert len({a["category_id"] for a in content["annotations"]}) > 5


def test_items_of_the_splits_are_fashion_mnist_s_own(made, monkeypatch):
    used = []
    original = fashion_coco._picture
    monkeypatch.setattr(
        fashion_coco, "_picture", lambda r, items, *rest: used.append(len(items)) or original(r, items, *rest)
    )
    make_fashion_coco(made.parent / "watched", Recipe(train=2, val=3))
    assert used == [10_000] * 2 + [2_000] * 3


def test_tight_box():
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, 11:13] = True
    assert fashion_coco._tight_box(mask) == [11, 4, 2, 5]
