"""Annotation files of other tools: what is read, what is left out, and what is refused."""

import json
import logging
import shutil
import unicodedata

import pytest

from geexp.config.errors import DataError
from geexp.detection.coco import CocoImages
from geexp.detection.evaluation import CocoEvaluator
from tests.support.coco import annotation, annotations, changed, write_coco


def opened(root, content, *, train=True):
    """The split of these annotations; its files are those of ``annotations()``."""
    write_coco(root, annotations())
    (root / "annotations/instances_train2014.json").write_text(json.dumps(content))
    return CocoImages(root, "train2014", train=train)


def boxes(images):
    return {images.name(i): images.target(i)["boxes"].tolist() for i in range(len(images))}


def perfect(images):
    """COCO's numbers of detections that are the boxes themselves."""
    evaluator = CocoEvaluator(images)
    for i in range(len(images)):
        target = images.target(i)
        evaluator.add([images.image_id(i)], [{**target, "scores": target["labels"] * 0 + 1.0}])
    return evaluator.scores().numbers


def with_ids(images, references, category):
    """The annotations with other ids: of the images, of the images in the annotations, of the categories."""
    content = annotations()
    for image in content["images"]:
        image["id"] = images(image["id"])
    for one in content["categories"]:
        one["id"] = category(one["id"])
    for one in content["annotations"]:
        one.update(image_id=references(one["image_id"]), category_id=category(one["category_id"]))
    return content


@pytest.mark.parametrize(
    ("images", "references", "category"),
    [
        (str, str, str),
        (int, str, int),  # on one side only
        (float, int, float),  # of a data frame
        ("{:06d}".format, "{:06d}".format, "class {:02d}".format),
        ((10**17).__add__, (10**17).__add__, int),  # beyond float64, in which pycocotools holds them
    ],
)
def test_ids_of_any_kind(tmp_path, images, references, category):
    usual = opened(tmp_path / "usual", annotations(), train=False)
    other = opened(tmp_path / "other", with_ids(images, references, category), train=False)
    assert list(boxes(other).values()) == list(boxes(usual).values())
    assert other.classes == usual.classes
    assert other.image_ids.dtype == other.category_ids.dtype == "int64"
    assert len(set(other.image_ids.astype(float))) == 4
    assert perfect(other) == perfect(usual)
    assert perfect(usual)["AP"] == 1


def test_annotations_that_cannot_be_used_are_left_out_and_named(tmp_path, caplog):
    content = annotations(n=4)
    first, second = (image["id"] for image in content["images"][:2])
    wrong = [None, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, float("nan")], [1, 2, 3, "x"], {"x": 1}, "1234"]
    content["annotations"] = [annotation(1, first, 18, [1.0, 2.0, 10.0, 10.0])]
    content["annotations"] += [annotation(7, second, 18, [1.0, 2.0, 10.0, 10.0]) | {"bbox": bbox} for bbox in wrong]
    content["annotations"] += [annotation(8, second, 18, [0.0, 0.0, 1.0, 1.0]), annotation(9, 5, 18, [0, 0, 9, 9])]
    del content["annotations"][-2]["bbox"]
    images = opened(tmp_path, content)
    assert list(boxes(images).values()) == [[[1.0, 2.0, 11.0, 12.0]]]
    assert images.left_out["annotations without a valid bbox"] == 9
    assert images.left_out["annotations of unlisted images"] == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "annotation 7 (bbox [1, 2, 3])" in warning
    assert "annotation 9 (image_id 5)" in warning
    everything = CocoImages(tmp_path, "train2014", train=False)
    assert len(everything) == 4
    assert [one["bbox"] for one in everything.truth()["annotations"]] == [[1.0, 2.0, 10.0, 10.0]]
    assert perfect(everything)["AP"] == pytest.approx(1)
    del content["annotations"][0]
    with pytest.raises(DataError, match=r"none of the 10 annotations can be used.* annotation 7 \(bbox None\)"):
        opened(tmp_path, content, train=False)


@pytest.mark.parametrize("bbox", [[5, 5, 0, 9], [5, 5, -3, 9], [5, 5, -3, -9], [70, 5, 5, 9]])
def test_boxes_without_an_area_are_for_evaluation_only(tmp_path, bbox):
    """As pycocotools counts them: objects that are never found."""
    content = changed(lambda content: content["annotations"][0].update(bbox=bbox, area=None))
    images = opened(tmp_path, content, train=False)
    assert images.left_out["boxes without an area"] == 1
    assert sum(map(len, boxes(images).values())) == 7
    assert len(images.truth()["annotations"]) == 8
    assert perfect(images)["AR100"] < 1


@pytest.mark.parametrize("area", ["missing", None, 0, -1, float("nan"), "?"])
def test_an_area_that_is_none_is_that_of_the_box(tmp_path, area, caplog):
    """Otherwise an object counts as small, medium and large at once."""

    def without_area(content):
        for one in content["annotations"]:
            one["area"] = area
            if area == "missing":
                del one["area"]

    images = opened(tmp_path, changed(without_area), train=False)
    assert images.truth() == opened(tmp_path / "usual", annotations(), train=False).truth()
    numbers = perfect(images)
    assert [numbers[f"AP_{size}"] for size in ("small", "medium", "large")] == [1, -1, -1]
    assert "area" in caplog.text


@pytest.mark.parametrize(("value", "crowd"), [(None, 0), ("missing", 0), (False, 0), ("0", 0), (True, 1), ("1", 1)])
def test_crowds(tmp_path, value, crowd):
    content = annotations()
    content["annotations"][0]["iscrowd"] = value
    if value == "missing":
        del content["annotations"][0]["iscrowd"]
    images = opened(tmp_path, content)
    assert images.left_out["crowds"] == crowd
    assert images.truth()["annotations"][0]["iscrowd"] == crowd


def test_names_with_folders(tmp_path):
    """Below the split's folder, or repeating it; with backslashes; in another Unicode normalisation."""
    content = annotations()
    usual = opened(tmp_path, content)
    files = [image["file_name"] for image in content["images"]]
    (tmp_path / "train2014/more").mkdir()
    shutil.move(tmp_path / "train2014" / files[1], tmp_path / "train2014/more/1.jpg")
    shutil.move(tmp_path / "train2014" / files[2], tmp_path / "train2014/more/2.jpg")
    shutil.move(
        tmp_path / "train2014" / files[3], tmp_path / "train2014" / unicodedata.normalize("NFD", "straße-é.jpg")
    )
    names = [
        f"train2014/{files[0]}",
        "more/1.jpg",
        "train2014\\more\\2.jpg",
        unicodedata.normalize("NFC", "straße-é.jpg"),
    ]
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    (tmp_path / "annotations/instances_train2014.json").write_text(json.dumps(content))
    images = CocoImages(tmp_path, "train2014", train=True)
    assert list(boxes(images).values()) == list(boxes(usual).values())
    assert [images.name(i).removeprefix(f"{tmp_path}/train2014/") for i in (0, 1, 2)] == [
        files[0],
        "more/1.jpg",
        "more/2.jpg",
    ]


@pytest.mark.parametrize("name", ["/data/a.jpg", "https://example.org/a.jpg", "C:\\data\\a.jpg", "\\\\server\\a.jpg"])
def test_names_that_are_not_relative(tmp_path, name):
    with pytest.raises(DataError, match=r"file_name of 1 images is a URL or an absolute path, such as .*relative to"):
        opened(tmp_path, changed(lambda content: content["images"][0].update(file_name=name)))


@pytest.mark.parametrize("size", ["missing", None, 0, float("nan"), "?"])
def test_sizes_that_are_missing_are_read_from_the_files(tmp_path, size, caplog):
    content = annotations()
    content["images"][0]["width"] = size
    if size == "missing":
        del content["images"][0]["width"]
    content["annotations"][0]["bbox"] = [50, 30, 30, 30]
    images = opened(tmp_path, content)
    assert images.size(0) == (40, 60)
    assert images.target(0)["boxes"][0].tolist() == [50, 30, 60, 40]
    assert "width" in caplog.text
    file = tmp_path / "train2014" / content["images"][0]["file_name"]
    file.write_bytes(b"")
    assert len(CocoImages(tmp_path, "train2014", train=True)) == 4  # reading the image fails, and names it


def test_rows_that_are_repeated(tmp_path, caplog):
    """As in merged files; categories of one name with different ids are different classes."""
    content = annotations()
    content["images"].append(dict(content["images"][0]))
    content["categories"] += [dict(content["categories"][0]), {"id": 0, "name": "dog", "supercategory": "none"}]
    images = opened(tmp_path, content)
    assert images.classes == ["dog", "person", "dog", "toothbrush"]
    assert len(images) == 4
    assert images.target(0)["labels"].tolist() == [3, 4]
    for part in ("repeated images", "repeated categories", "dog"):
        assert part in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), "without the list categories.* keys are images, annotations"),
        (lambda content: content.update(images={"a.jpg": {}}), "without the list images"),
        (lambda content: content["annotations"].append(None), r"annotations\[8\] is None"),
        (
            lambda content: content["annotations"][3].update(category_id=2),
            r"not listed .* annotation 11 \(category_id 2",
        ),
        (lambda content: content["images"][0].update(id=93), "images have the same id, 93"),
        (lambda content: content["categories"][0].update(id=1), "categories have the same id, 1"),
        (lambda content: content["images"][2].update(id=None), r"images\[2\] has no id"),
        (lambda content: content["images"][0].pop("file_name"), "images with id 100 has no file_name"),
        (lambda content: content["categories"][0].pop("name"), "categories with id 90 has no name"),
        (lambda content: content.update(annotations=[]), "no images with a box"),
        (lambda content: content.update(annotations=[], images=[]), "no images with a box"),
    ],
)
def test_inconsistent_files_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=rf"instances_train2014\.json.*{message}"):
        opened(tmp_path, changed(change))


def test_files_that_are_not_annotations(tmp_path):
    path = write_coco(tmp_path, annotations()) / "annotations/instances_train2014.json"
    whole = path.read_text()
    for content, words in ((whole[:500], "complete JSON"), ("", "complete JSON"), ("[]", "a list"), ("3", "an? int")):
        path.write_text(content)
        with pytest.raises(DataError, match=rf"{path}.*{words}.*") as refused:
            CocoImages(tmp_path, "train2014", train=True)
        assert "COCO's instance annotations" in str(refused.value)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="complete JSON"):
        CocoImages(tmp_path, "train2014", train=True)
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(whole, encoding=encoding)
        assert len(CocoImages(tmp_path, "train2014", train=True)) == 4
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        CocoImages(tmp_path, "train2014", train=True)
