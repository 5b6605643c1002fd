"""COCO's layout: what is read, what is left out and said so, what is refused; batches that resume."""

import logging
from itertools import islice

import numpy as np
import pytest
import torch

from geexp.config.errors import ConfigError, DataError
from geexp.data.order import FixedOrder, TrainingOrder
from geexp.detection.batches import DetectionDataset, DetectionFeed, mirrored
from geexp.detection.coco import CocoImages, require_same_classes
from tests.detection.made_coco import annotation, changed, content, write


def test_what_is_read(tmp_path):
    images = CocoImages(write(tmp_path, content()), "train2014", train=True, num_classes=3)
    assert images.classes == ["person", "dog", "toothbrush"]  # in the order of their ids, not of the file
    assert len(images) == 4
    assert images.image_id(1) == 93
    assert images.size(1) == (40, 60)
    target = images.target(1)
    assert target["labels"].tolist() == [2, 3]
    assert target["boxes"].tolist() == [[6.0, 4.0, 26.0, 14.5], [6.0, 4.0, 26.0, 15.5]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64
    assert images.category_ids(target["labels"].numpy()).tolist() == [18, 90]


def test_truth_is_the_file_s_own(tmp_path):
    made = content()
    made["annotations"].append(annotation(99, 100, 1, [-10.0, 0.0, 500.0, 3.25], iscrowd=1, area=7.5))
    truth = CocoImages(write(tmp_path, made), "train2014", train=False).truth()
    mine = [{k: v for k, v in one.items() if k != "id"} for one in truth["annotations"]]
    its = [{k: v for k, v in one.items() if k != "id"} for one in made["annotations"]]
    assert sorted(map(repr, mine)) == sorted(map(repr, its))
    assert min(one["id"] for one in truth["annotations"]) == 1
    assert {image["id"] for image in truth["images"]} == {image["id"] for image in made["images"]}


def test_what_is_left_out_of_training_is_said(tmp_path, caplog):
    made = content(n=6)
    ids = [image["id"] for image in made["images"]]
    made["annotations"] = [
        annotation(1, ids[0], 1, [50.0, 30.0, 30.0, 30.0]),  # reaches out of the image
        annotation(2, ids[1], 1, [0.0, 0.0, 60.0, 40.0], iscrowd=1),
        annotation(3, ids[2], 1, [5.0, 5.0, 0.0, 9.0]),
        annotation(4, ids[3], 1, [70.0, 5.0, 5.0, 9.0]),  # wholly outside
        annotation(5, ids[4], 1, [1.0, 1.0, 2.0, 2.0]),
        annotation(6, ids[4], 1, [1.0, 1.0, 2.0, 2.0], iscrowd=1),
    ]
    write(tmp_path, made)
    with caplog.at_level(logging.INFO):
        train = CocoImages(tmp_path, "train2014", train=True)
    assert [train.image_id(i) for i in range(len(train))] == [ids[0], ids[4]]
    assert train.target(0)["boxes"].tolist() == [[50.0, 30.0, 60.0, 40.0]]
    assert len(train.target(1)["boxes"]) == 1
    said = "4 images without a box, 2 crowds, 2 boxes without an area; 2 boxes were clipped"
    assert said in caplog.text
    evaluation = CocoImages(tmp_path, "train2014", train=False)
    assert len(evaluation) == 6
    assert evaluation.target(1)["boxes"].shape == (0, 4)
    assert len(evaluation.truth()["annotations"]) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.pop("categories"), "'categories' is missing"),
        (lambda made: made["annotations"][0].pop("bbox"), "'bbox' is missing"),
        (lambda made: made["annotations"][0].update(bbox=[1, 2, 3]), "not arranged as COCO's"),
        (lambda made: made["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "no numbers"),
        (
            lambda made: made["annotations"][0].update(image_id=5),
            "the image_id of 1 annotations is not listed in the file; the first is 5",
        ),
        (
            lambda made: made["annotations"][0].update(category_id=2),
            "the category_id of 1 annotations is not listed in the file; the first is 2",
        ),
        (lambda made: made["images"][0].update(id=93), "images have the same id"),
        (lambda made: made["categories"][0].update(id=1), "categories have the same id"),
        (lambda made: made.update(annotations=[]), "no image with a box"),
        (lambda made: made.update(annotations=[], images=[]), "no image with a box"),
        (lambda made: made.update(images=[]), "the image_id of 8 annotations is not"),
    ],
)
def test_contradictions_are_refused(tmp_path, change, message):
    write(tmp_path, changed(change))
    with pytest.raises(DataError, match=r"instances_train2014\.json") as error:
        CocoImages(tmp_path, "train2014", train=True)
    assert message in str(error.value)


def test_a_file_cut_in_half(tmp_path):
    path = write(tmp_path, content()) / "annotations/instances_train2014.json"
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="no whole JSON file"):
        CocoImages(tmp_path, "train2014", train=True)
    path.write_text("[]")
    with pytest.raises(DataError, match="not arranged"):
        CocoImages(tmp_path, "train2014", train=True)
    path.unlink()
    with pytest.raises(DataError, match="there is no such file"):
        CocoImages(tmp_path, "train2014", train=True)


def test_missing_images_are_counted(tmp_path):
    made = content()
    write(tmp_path, made)
    for image in made["images"][1:3]:
        (tmp_path / "train2014" / image["file_name"]).unlink()
    with pytest.raises(DataError, match=r"2 of the 4 images .* such as COCO_train2014_000000000093\.jpg"):
        CocoImages(tmp_path, "train2014", train=True)


def test_classes_are_counted_and_compared(tmp_path):
    write(tmp_path, content())
    write(tmp_path, changed(lambda made: made["categories"][0].update(id=91)) | {"annotations": []}, "val2014")
    with pytest.raises(ConfigError, match=r"data\.num_classes=80: .* has 3 categories \(person, dog, toothbrush"):
        CocoImages(tmp_path, "train2014", train=True, num_classes=80)
    train = CocoImages(tmp_path, "train2014", train=True)
    require_same_classes(train, train)
    with pytest.raises(DataError, match="different categories"):
        require_same_classes(train, CocoImages(tmp_path, "val2014", train=False))


def test_damaged_and_exchanged_images(tmp_path):
    made = content()
    write(tmp_path, made)
    dataset = DetectionDataset(CocoImages(tmp_path, "train2014", train=True), flip=False)
    file = tmp_path / "train2014" / made["images"][0]["file_name"]
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read as an image"):
        dataset[0, 0]
    write(tmp_path / "other", content(size=(50, 40)))
    (tmp_path / "other/train2014" / file.name).rename(file)
    with pytest.raises(DataError, match="50x40 pixels, and its annotations are for 60x40"):
        dataset[0, 0]


def test_flip_mirrors_image_and_boxes(tmp_path):
    images = CocoImages(write(tmp_path, content()), "train2014", train=True)
    plain, dataset = DetectionDataset(images, flip=False), DetectionDataset(images, flip=True, seed=1)
    flipped = 0
    for epoch in range(20):
        (image, target), (original, truth) = dataset[epoch, 2], plain[epoch, 2]
        if not torch.equal(image, original):
            flipped += 1
            assert torch.equal(image.flip(2), original)
            assert torch.equal(mirrored(target["boxes"], width=60), truth["boxes"])
            assert (target["boxes"][:, 2] > target["boxes"][:, 0]).all()
        else:
            assert torch.equal(target["boxes"], truth["boxes"])
    assert 4 < flipped < 16


def same(a, b):
    return (
        a.image_ids == b.image_ids
        and all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
        and all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a.targets, b.targets, strict=True))
    )


def test_an_epoch_goes_on_where_it_stopped(tmp_path):
    images = CocoImages(write(tmp_path, content(n=12)), "train2014", train=True)

    def feed(workers=0):
        order = TrainingOrder(len(images), batch_size=2, seed=3)
        order.set_epoch(5)
        return DetectionFeed(DetectionDataset(images, flip=True, seed=3), order, workers=workers)

    whole = list(feed())
    assert len(whole) == len(feed()) == 6
    stopped, resumed = feed(), feed(workers=2)
    assert [same(a, b) for a, b in zip(islice(stopped, 4), whole, strict=False)] == [True] * 4
    resumed.load_state_dict(stopped.state_dict())
    rest = list(resumed)
    assert [same(a, b) for a, b in zip(rest, whole[4:], strict=True)] == [True] * 2
    with pytest.raises(DataError, match="has 12 images, and had 11"):
        resumed.load_state_dict(stopped.state_dict() | {"images": 11})


def test_evaluation_shows_every_image_once(tmp_path):
    images = CocoImages(write(tmp_path, content(n=7)), "train2014", train=False)
    shown = []
    for rank in range(3):
        order = FixedOrder(len(images), batch_size=2, rank=rank, world=3)
        shown += [i for batch in DetectionFeed(DetectionDataset(images, flip=False), order) for i in batch.image_ids]
    assert sorted(shown) == sorted(images.image_ids.tolist())


def test_a_batch_as_the_detector_wants_it(tmp_path):
    images = CocoImages(write(tmp_path, content()), "train2014", train=True)
    batch = DetectionDataset(images, flip=False).__getitems__([(0, 0), (0, 1)]).to(torch.device("cpu"))
    assert len(batch) == 2
    assert batch.images[0].dtype == torch.uint8
    (first, _) = batch.inputs()
    assert first.shape == (3, 40, 60)
    assert first.dtype == torch.float32
    assert 0 <= first.min() < first.max() <= 1
    assert np.array_equal((first * 255).round().byte().numpy(), batch.images[0].numpy())
