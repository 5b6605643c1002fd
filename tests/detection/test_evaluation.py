"""COCO's numbers: equal to another author's evaluator, whatever the number of ranks."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from faster_coco_eval.core import coco as other_coco
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

from geexp.detection.coco import CocoImages
from geexp.detection.evaluation import NUMBERS, CocoEvaluator
from tests.support.coco import annotation, annotations, write_coco


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Thirty images with objects of all sizes, crowds, boxes beyond the border, and an image without objects."""
    content, random = annotations(n=30, size=(300, 260)), np.random.default_rng(0)
    content["annotations"] = []
    for image in content["images"][1:]:
        for _ in range(random.integers(1, 9)):
            w, h = np.exp(random.uniform(np.log(8), np.log(240), 2))
            box = [*random.uniform(0, 200, 2), w, h]
            more = {"iscrowd": int(random.random() < 0.1), "area": float(w * h * random.uniform(0.4, 1))}
            number = len(content["annotations"])  # from 0: an id that pycocotools takes for "no match"
            content["annotations"].append(annotation(number, image["id"], random.choice([1, 18]).item(), box, **more))
    return CocoImages(write_coco(tmp_path_factory.mktemp("split"), content), "train2014", train=False)


def found(images: CocoImages, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """The objects with noise, some missing, some invented; many scores are equal."""
    random, detections = np.random.default_rng(seed), []
    for i in range(len(images)):
        truth = images.target(i)
        kept = torch.from_numpy(random.random(len(truth["labels"])) < 0.8)
        boxes = truth["boxes"][kept] * torch.from_numpy(random.normal(1, 0.03, (int(kept.sum()), 4))).float()
        boxes = torch.cat([boxes, torch.from_numpy(random.uniform(0, 200, (5, 2))).float().repeat(1, 2)])
        boxes[-5:, 2:] += 30
        labels = torch.cat([truth["labels"][kept], torch.from_numpy(random.integers(1, 4, 5))])
        scores = torch.from_numpy(random.integers(1, 20, len(labels)) / 20).float()
        detections.append({"boxes": boxes, "labels": labels, "scores": scores})
    return detections


def ids(images: CocoImages) -> list[int]:
    return [images.image_id(i) for i in range(len(images))]


def evaluated(images: CocoImages, detections: list[dict[str, torch.Tensor]]):
    evaluator = CocoEvaluator(images)
    for start in range(0, len(images), 7):
        evaluator.add(ids(images)[start : start + 7], detections[start : start + 7])
    return evaluator.scores()


def results(images, image_ids, detections):
    """COCO's result format, written as in torchvision's ``prepare_for_coco_detection``."""
    rows = []
    for image_id, one in zip(image_ids, detections, strict=True):
        x1, y1, x2, y2 = one["boxes"].unbind(1)
        boxes = torch.stack((x1, y1, x2 - x1, y2 - y1), dim=1).tolist()
        categories = images.category_ids[one["labels"].numpy() - 1].tolist()
        for box, score, category in zip(boxes, one["scores"].tolist(), categories, strict=True):
            rows.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})
    return rows


@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_equal_another_evaluator(split, seed, capsys):
    detections = found(split, seed)
    scores = evaluated(split, detections)
    assert capsys.readouterr().out == ""
    assert list(scores.numbers) == list(NUMBERS)
    truth = other_coco.COCO(split.truth() | {"info": {}})
    rows = results(split, ids(split), detections)
    other = COCOeval_faster(truth, truth.loadRes(rows), "bbox", print_function=lambda *_: None)
    other.run()
    assert list(scores.numbers.values()) == pytest.approx(list(other.stats)[:12], abs=1e-6)
    assert 0.05 < scores.numbers["AP"] < scores.numbers["AP50"] < 1
    assert min(scores.numbers.values()) > 0  # there are objects of every size


def test_nothing_found(split):
    nothing = [{"boxes": torch.empty(0, 4), "labels": torch.empty(0).long(), "scores": torch.empty(0)}] * len(split)
    scores = evaluated(split, nothing)
    assert scores.numbers == dict.fromkeys(NUMBERS, 0.0)
    assert scores.precision.mean((0, 1)).tolist() == [0, 0, -1]  # no toothbrush in the split


def test_everything_found(split):
    truth = split.truth()["annotations"]
    perfect = []
    for image_id in ids(split):
        mine = [one for one in truth if one["image_id"] == image_id and not one["iscrowd"]]
        x, y, w, h = torch.tensor([one["bbox"] for one in mine], dtype=torch.float64).reshape(-1, 4).unbind(1)
        labels = torch.tensor([{1: 1, 18: 2}[one["category_id"]] for one in mine], dtype=torch.int64)
        perfect.append(
            {"boxes": torch.stack([x, y, x + w, y + h], 1), "labels": labels, "scores": torch.ones(len(mine))}
        )
    scores = evaluated(split, perfect)
    assert [scores.numbers[name] for name in ("AP", "AP50", "AP_small", "AR100")] == [1.0] * 4
    assert scores.precision.mean((0, 1)).tolist() == pytest.approx([1, 1, -1])


def test_classes_and_curves(split):
    scores = evaluated(split, found(split))
    assert scores.classes == ["person", "dog", "toothbrush"]
    assert scores.precision.shape == (10, 101, 3)
    assert scores.precision[:, :, :2].mean() == pytest.approx(scores.numbers["AP"])
    assert (scores.precision[:, :, 2] == -1).all()
    assert (np.diff(scores.precision[0, :, 0]) <= 0).all()
    assert scores.recall[[0, -1]].tolist() == [0.0, 1.0]


def test_each_image_counts_once(split):
    evaluator, detections = CocoEvaluator(split), found(split)
    evaluator.add(ids(split)[:20], detections[:20])
    with pytest.raises(ValueError, match=f"image {ids(split)[3]} is evaluated twice"):
        evaluator.add(ids(split)[3:4], detections[3:4])
    with pytest.raises(ValueError, match="20 images were evaluated in a split of 30: 10 are missing"):
        evaluator.scores()
    evaluator.reset()
    evaluator.add(ids(split), detections)
    assert evaluator.scores().numbers == evaluated(split, detections).numbers


def test_part_of_a_split(split):
    detections, some = found(split), CocoEvaluator(split, whole=False)
    some.add(ids(split)[:20], detections[:20])
    numbers = some.scores().numbers
    assert 0 < numbers["AP"] != evaluated(split, detections).numbers["AP"]


def test_images_that_cannot_be_read_are_left_out_with_their_objects(split):
    detections, whole, part = found(split), CocoEvaluator(split), CocoEvaluator(split, whole=False)
    whole.skip(ids(split)[:5])
    for evaluator in (whole, part):
        evaluator.add(ids(split)[5:], detections[5:])
    assert whole.scores().numbers == part.scores().numbers


def _rank(rank, folder, images, detections):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    mine = range(rank, len(images), 3)
    evaluator = CocoEvaluator(images)
    evaluator.add([ids(images)[i] for i in mine], [detections[i] for i in mine])
    (folder / f"{rank}.json").write_text(json.dumps(evaluator.scores().numbers))
    evaluator.reset()
    evaluator.add(ids(images)[rank : rank + 2], detections[rank : rank + 2])
    try:
        evaluator.scores()
    except ValueError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


def test_ranks_share_the_images(split, tmp_path):
    detections = found(split)
    mp.start_processes(_rank, (tmp_path, split, detections), nprocs=3, start_method="fork")
    alone = evaluated(split, detections).numbers
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)] == [alone] * 3
    for rank in range(3):
        assert "26 are missing, 2 were evaluated twice" in (tmp_path / f"{rank}.txt").read_text()
