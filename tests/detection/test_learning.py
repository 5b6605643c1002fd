"""A detector learns: eight images by heart, read, trained on and evaluated with the parts of this package."""

import pytest
import torch

from geexp.backbones import add_gather_excite
from geexp.backbones.resnet import resnet10_slim
from geexp.data.order import FixedOrder, TrainingOrder, mix
from geexp.detection.coco import CocoImages
from geexp.detection.data import DetectionFeed, DetectionReader
from geexp.detection.evaluation import CocoEvaluator
from geexp.detection.fashion_coco import Recipe, make_fashion_coco
from geexp.detection.faster_rcnn import build_detector
from geexp.detection.task import fixed_draws

CPU = torch.device("cpu")


@pytest.mark.slow
def test_eight_images_are_learnt_by_heart(tmp_path):
    make_fashion_coco(tmp_path / "set", Recipe(train=8, val=1, most_items=3, smallest=40))
    images = CocoImages(tmp_path / "set", "train", train=True)
    torch.manual_seed(0)
    network = add_gather_excite(resnet10_slim(num_classes=10, in_channels=3), variant="theta", extent=4)
    detector = build_detector(
        network,
        num_classes=10,
        min_size=192,
        max_size=384,
        anchor_sizes=(32, 56, 96),
        roi_size=8,
        freeze_bn=False,
        rpn_post_nms_top_n_train=100,
        regions=32,
    )
    optimizer = torch.optim.SGD(detector.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=400)
    feed = DetectionFeed(
        DetectionReader(images, flip=False), TrainingOrder(len(images), batch_size=8, seed=0, repeat=True)
    )
    for step in range(400):
        for batch in feed:
            with fixed_draws(mix(0, "draws", step), CPU):
                loss = sum(detector(batch.inputs(), batch.targets).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            schedule.step()
    evaluator = CocoEvaluator(images)
    detector.eval()
    with torch.no_grad():
        for batch in DetectionFeed(DetectionReader(images, flip=False), FixedOrder(len(images), batch_size=8)):
            evaluator.add(batch.image_ids, detector(batch.inputs()))
    numbers = evaluator.scores().numbers
    assert numbers["AP50"] > 0.9, numbers
