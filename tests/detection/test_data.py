"""COCO's layout: images and targets; batches, and feeds that resume."""

import json
import logging
from itertools import islice

import pytest
import torch
from PIL import ExifTags, Image

from geexp.config.errors import ConfigError, DataError
from geexp.data.order import FixedOrder, TrainingOrder
from geexp.detect import training_arguments
from geexp.detection.coco import CocoImages, require_same_classes
from geexp.detection.data import DetectionFeed, DetectionReader, open_split
from tests.support.coco import annotation, annotations, changed, write_coco
from tests.support.configuration import train_config


def split_of(root, content=None, *, train=True):
    return CocoImages(write_coco(root, content or annotations()), "train2014", train=train)


def test_images_and_targets(tmp_path):
    images = split_of(tmp_path)
    assert images.classes == ["person", "dog", "toothbrush"]  # in the order of their ids
    assert len(images) == 4
    assert images.image_id(1) == 93
    assert images.size(1) == (40, 60)
    target = images.target(1)
    assert target["labels"].tolist() == [2, 3]
    assert target["boxes"].tolist() == [[6.0, 4.0, 26.0, 14.5], [6.0, 4.0, 26.0, 15.5]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64
    assert images.category_ids[target["labels"].numpy() - 1].tolist() == [18, 90]


def test_truth_has_the_annotations_of_the_file(tmp_path):
    content = annotations()
    content["annotations"].append(annotation(99, 100, 1, [-10.0, 0.0, 500.0, 3.25], iscrowd=1, area=7.5))
    truth = split_of(tmp_path, content, train=False).truth()
    ours, theirs = (
        sorted(repr(sorted((k, v) for k, v in one.items() if k != "id")) for one in whole["annotations"])
        for whole in (truth, content)
    )
    assert ours == theirs
    assert min(one["id"] for one in truth["annotations"]) == 1
    assert {image["id"] for image in truth["images"]} == {image["id"] for image in content["images"]}


def test_training_leaves_out_what_has_nothing_to_learn_from(tmp_path, caplog):
    content = annotations(n=6)
    ids = [image["id"] for image in content["images"]]
    content["annotations"] = [
        annotation(1, ids[0], 1, [50.0, 30.0, 30.0, 30.0]),  # partly outside
        annotation(2, ids[1], 1, [0.0, 0.0, 60.0, 40.0], iscrowd=1),
        annotation(3, ids[2], 1, [5.0, 5.0, 0.0, 9.0]),
        annotation(4, ids[3], 1, [70.0, 5.0, 5.0, 9.0]),  # wholly outside
        annotation(5, ids[4], 1, [1.0, 1.0, 2.0, 2.0]),
        annotation(6, ids[4], 1, [1.0, 1.0, 2.0, 2.0], iscrowd=1),
    ]
    with caplog.at_level(logging.INFO):
        train = split_of(tmp_path, content)
    assert [train.image_id(i) for i in range(len(train))] == [ids[0], ids[4]]
    assert train.target(0)["boxes"].tolist() == [[50.0, 30.0, 60.0, 40.0]]
    assert len(train.target(1)["boxes"]) == 1
    assert train.left_out == {"images without a box": 4, "crowds": 2, "boxes without an area": 2}
    assert "4 images without a box, 2 crowds, 2 boxes without an area; 2 boxes clipped" in caplog.text
    evaluation = CocoImages(tmp_path, "train2014", train=False)
    assert len(evaluation) == 6
    assert evaluation.target(1)["boxes"].shape == (0, 4)
    assert len(evaluation.truth()["annotations"]) == 6


def test_missing_images_are_counted(tmp_path):
    content = annotations()
    write_coco(tmp_path, content)
    for image in content["images"][1:3]:
        (tmp_path / "train2014" / image["file_name"]).unlink()
    with pytest.raises(DataError, match=r"2 of the 4 images .* such as COCO_train2014_000000000093\.jpg"):
        CocoImages(tmp_path, "train2014", train=True)


def test_classes_must_be_those_of_the_configuration_and_equal_in_both_splits(tmp_path):
    train = split_of(tmp_path)
    config = train_config(*training_arguments([f"data.root={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"data\.num_classes=80: .* has 3 categories \(person, dog, toothbrush"):
        open_split(config.data, train=True)
    require_same_classes(train, train)
    other = changed(lambda content: content["categories"][0].update(id=91)) | {"annotations": []}
    write_coco(tmp_path, other, "val2014")
    with pytest.raises(DataError, match=r"different categories.*first.*toothbrush \(90\).*second.*toothbrush \(91\)"):
        require_same_classes(train, CocoImages(tmp_path, "val2014", train=False))


def test_damaged_and_exchanged_images(tmp_path):
    images = split_of(tmp_path)
    feed = DetectionFeed(DetectionReader(images, flip=False), FixedOrder(len(images), batch_size=4))
    file = tmp_path / "train2014" / annotations()["images"][0]["file_name"]
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=rf"cannot read .*{file.name} \(image 0\): .*feed\.on_error=skip"):
        list(feed)
    write_coco(tmp_path / "other", annotations(size=(50, 40)))
    (tmp_path / "other/train2014" / file.name).rename(file)
    with pytest.raises(DataError, match=rf"{file.name} .*50x40 pixels, but annotated as 60x40"):
        list(feed)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_replaced_in_training_and_left_out_of_evaluation(tmp_path, workers):
    content = annotations(n=7)
    images = split_of(tmp_path, content)
    for image in content["images"][:3]:
        (tmp_path / "train2014" / image["file_name"]).write_text("no image")
    damaged = [image["id"] for image in content["images"][:3]]

    def feed(order, *, replace):
        reader = DetectionReader(images, flip=True, replace=replace)
        return DetectionFeed(reader, order, workers=workers, on_error="skip")

    training = feed(TrainingOrder(7, batch_size=1, seed=3), replace=True)
    batches = list(training)
    assert [len(batch.images) for batch in batches] == [len(batch.targets) for batch in batches] == [1] * 7
    assert not {i for batch in batches for i in batch.image_ids} & set(damaged)
    assert sorted(training.skipped) == [0, 1, 2]
    batches = list(feed(FixedOrder(7, batch_size=2), replace=False))
    assert [len(batch.images) for batch in batches] == [0, 1, 2, 1]
    assert [i for batch in batches for i in batch.skipped_ids] == damaged
    (tmp_path / "train2014" / content["images"][3]["file_name"]).write_text("no image")
    for order, replace in ((FixedOrder(7, batch_size=2), False), (TrainingOrder(7, batch_size=1, seed=3), True)):
        with pytest.raises(DataError, match=r"more than half of 7 images .*\.jpg"):
            list(feed(order, replace=replace))


def test_boxes_of_an_image_that_exif_rotates(tmp_path):
    """Pixels are read as stored; boxes drawn on the rotated image are refused."""
    rotated = Image.Exif()
    rotated[ExifTags.Base.Orientation] = 6
    stored = split_of(tmp_path, annotations(size=(60, 40)))
    with Image.open(stored.name(0)) as image:
        image.save(stored.name(0), exif=rotated)
    assert DetectionReader(stored, flip=False).read_one((0, 0))[0].shape == (3, 40, 60)
    (tmp_path / "annotations/instances_train2014.json").write_text(json.dumps(annotations(size=(40, 60))))
    with pytest.raises(ValueError, match=r"60x40 pixels, but annotated as 40x60: .*EXIF.* rotate the file"):
        DetectionReader(CocoImages(tmp_path, "train2014", train=True), flip=False).read_one((0, 0))


def test_flip_mirrors_image_and_boxes(tmp_path):
    images = split_of(tmp_path)
    original, truth = DetectionReader(images, flip=False).read_one((0, 2))
    reader, flipped = DetectionReader(images, flip=True, seed=1), 0
    for epoch in range(20):
        image, target = reader.read_one((epoch, 2))
        if torch.equal(image, original):
            assert torch.equal(target["boxes"], truth["boxes"])
        else:
            flipped += 1
            assert torch.equal(image.flip(2), original)
            x1, y1, x2, y2 = truth["boxes"].unbind(1)
            assert torch.equal(target["boxes"], torch.stack([60 - x2, y1, 60 - x1, y2], 1))
    assert 4 < flipped < 16


def test_an_epoch_resumes_where_it_stopped(tmp_path):
    images = split_of(tmp_path, annotations(n=12))

    def feed(workers=0):
        order = TrainingOrder(len(images), batch_size=2, seed=3)
        order.set_epoch(5)
        return DetectionFeed(DetectionReader(images, flip=True, seed=3), order, workers=workers)

    whole = list(feed())
    assert len(whole) == len(feed()) == 6
    stopped, resumed = feed(), feed(workers=2)
    first = list(islice(stopped, 4))
    resumed.load_state_dict(stopped.state_dict())
    for got, want in zip([*first, *resumed], whole, strict=True):
        assert got.image_ids == want.image_ids
        torch.testing.assert_close((got.images, got.targets), (want.images, want.targets), rtol=0, atol=0)
    with pytest.raises(DataError, match=r"12 images.* 11"):
        resumed.load_state_dict(stopped.state_dict() | {"images": 11})


def test_evaluation_shows_every_image_once(tmp_path):
    images = split_of(tmp_path, annotations(n=7), train=False)
    shown = []
    for rank in range(3):
        order = FixedOrder(len(images), batch_size=2, rank=rank, world=3)
        shown += [i for batch in DetectionFeed(DetectionReader(images, flip=False), order) for i in batch.image_ids]
    assert sorted(shown) == sorted(images.image_ids.tolist())


def test_inputs_of_a_batch(tmp_path):
    batch = DetectionReader(split_of(tmp_path), flip=False).__getitems__([(0, 0), (0, 1)])
    assert len(batch.images) == len(batch.targets) == 2
    assert batch.images[0].dtype == torch.uint8
    first = batch.inputs()[0]
    assert first.shape == (3, 40, 60)
    assert first.dtype == torch.float32
    assert torch.equal((first * 255).round().byte(), batch.images[0])
