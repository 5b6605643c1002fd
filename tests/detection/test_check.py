"""``python -m geexp.check_data`` on sets with boxes."""

import json

import pytest
from PIL import ExifTags, Image

from geexp.detection.check import check_split
from geexp.detection.coco import CocoImages
from tests.support.coco import annotation, annotations, write_coco

SPLITS = ("train2017", "val2017")


@pytest.fixture
def check(forked, tmp_path):
    """``check("format=json")``: the finished command on ``tmp_path / "coco"``."""
    usual = ["data=coco2017", f"data.root={tmp_path / 'coco'}", "data.num_classes=3", "workers=2"]
    return lambda *arguments: forked.run(tmp_path, "check_data", *usual, *arguments)[0]


@pytest.fixture
def content(tmp_path):
    """Annotations of both splits: an image without a box, a crowd, a box without an area, two of no use."""
    content = annotations(n=7)
    for one in content["annotations"][:2]:
        one["iscrowd"] = 1
    content["annotations"][2]["bbox"] = [5, 5, 0, 5]
    content["annotations"][4]["bbox"] = [1, 2]
    content["annotations"].append(annotation(99, 12345, 18, [1, 1, 5, 5]))
    write_coco(tmp_path / "coco", content, *SPLITS)
    return content


def test_a_sound_set(check, content):
    done = check()
    assert done.returncode == 0, done.stderr
    cells = {line[:44].strip(): line[44:].split() for line in done.stdout.splitlines()[:13]}
    assert cells["images"] == ["7", "7"]
    assert cells["boxes"] == ["10", "10"]
    assert cells["left out: images without a box"] == ["1", "0"]
    assert cells["left out: crowds"] == ["2", "2"]
    assert cells["left out: boxes without an area"] == ["1", "1"]
    assert cells["left out: annotations without a valid bbox"] == ["1", "1"]
    assert cells["files missing"] == ["0", "0"]
    assert "annotation 20 (bbox [1, 2])" in done.stdout


def test_bad_images_are_listed(check, content, tmp_path):
    """All of them, also of an image that training leaves out."""
    gone, empty, rotated, smaller, *_ = (
        tmp_path / "coco/train2017" / image["file_name"] for image in content["images"]
    )
    gone.unlink()
    empty.write_bytes(b"")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    Image.new("RGB", (40, 60)).save(rotated, exif=exif)
    Image.new("RGB", (30, 20)).save(smaller)
    done = check("format=json")
    assert done.returncode == 1
    assert "4 of 14 images" in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert report["bad"] == 4
    train = report["splits"]["train"]
    assert [one["name"] for one in train["missing"]] == [str(gone)]
    assert train["unreadable"] == [{"name": str(empty), "reason": "empty file"}]
    assert [one["name"] for one in train["sizes"]] == [str(rotated), str(smaller)]
    assert ["EXIF" in one["reason"] for one in train["sizes"]] == [True, False]
    assert train["left_out"]["annotations of unlisted images"] == 1
    listed = check().stdout.splitlines()[-4:]
    assert all(line.startswith("train: ") for line in listed)
    assert str(smaller) in listed[-1]


def test_an_orientation_that_is_ignored_is_counted(tmp_path):
    content = annotations(n=3)
    write_coco(tmp_path, content)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # upside down: the size does not show it
    Image.new("RGB", (60, 40)).save(tmp_path / "train2014" / content["images"][1]["file_name"], exif=exif)
    report = check_split(CocoImages(tmp_path, "train2014", train=True, everything=True), "auto", workers=1)
    assert (report.exif, report.bad) == (1, [])
