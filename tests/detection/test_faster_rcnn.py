"""The detector: layouts, sizes, frozen BN, Gather-Excite in every part, reproducible steps."""

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FrozenBatchNorm2d

from geexp.backbones import add_gather_excite, build_model
from geexp.backbones.anatomy import block_outputs
from geexp.backbones.resnet import resnet10_slim
from geexp.detection.faster_rcnn import RegionHeads, build_detector
from geexp.detection.task import fixed_draws

SMALL = {
    "min_size": 64,
    "max_size": 96,
    "anchor_sizes": (16, 32),
    "regions": 16,
    "rpn_post_nms_top_n_train": 50,
}


def slim(variant=None, extent=4):
    network = resnet10_slim(num_classes=10, in_channels=3)
    return network if variant is None else add_gather_excite(network, variant=variant, extent=extent)


def scene(n=2, size=(64, 80)):
    images = [torch.rand(3, *size, generator=torch.Generator().manual_seed(i)) for i in range(n)]
    boxes = torch.tensor([[4.0, 6.0, 40.0, 44.0], [30.0, 10.0, 60.0, 50.0]])
    return images, [{"boxes": boxes, "labels": torch.tensor([1, 3])} for _ in range(n)]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_c4():
    backbone = build_model("resnet50")
    last = count(backbone.layer4)
    detector = build_detector(backbone, num_classes=80, freeze_bn=False)
    anchors = 5 * 3
    assert count(detector.backbone) == 23_508_032 - last  # ResNet-50 without its classifier
    assert count(detector.rpn) == (9 * 1024 + 1) * 1024 + (1024 + 1) * anchors * (1 + 4)
    assert count(detector.roi_heads) == last + (2048 + 1) * 81 * (1 + 4)
    assert detector.rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    assert detector.transform.size_divisible == 16
    with torch.no_grad():
        assert detector.backbone(torch.rand(2, 3, 64, 96)).shape == (2, 1024, 4, 6)
        stage = detector.roi_heads.box_head.stage
        regions = torch.rand(3, 1024, *detector.roi_heads.box_roi_pool.output_size)
        assert stage(regions).shape == (3, 2048, 7, 7)
        assert detector.roi_heads.box_head(regions).shape == (3, 2048)


def test_the_detector_computes_the_feature_maps_of_the_backbone():
    network = slim("theta")
    images = torch.rand(2, 3, 64, 64)
    expected = block_outputs(network.eval(), images, ["conv4_1", "conv5_1"])
    detector = build_detector(network, num_classes=3, **SMALL).eval()
    torch.testing.assert_close(detector.backbone(images), expected["conv4_1"])
    torch.testing.assert_close(
        detector.roi_heads.box_head(expected["conv4_1"]), expected["conv5_1"].mean((2, 3)), rtol=1e-4, atol=1e-5
    )


def test_fpn_levels():
    detector = build_detector(slim(), num_classes=3, layout="fpn", min_size=64, max_size=96)
    assert detector.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    with torch.no_grad():
        levels = detector.backbone(torch.rand(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels.values()] == [(256, s, s) for s in (16, 8, 4, 2, 1)]


VARIANTS = [(None, 4), ("theta_minus", "global"), ("theta_minus", 8), ("theta", 4), ("theta_plus", 2), ("se", "global")]


@pytest.mark.parametrize(
    ("layout", "variant", "extent"), [*(("c4", *variant) for variant in VARIANTS), ("fpn", "theta_plus", 4)]
)
def test_forward_and_backward(layout, variant, extent):
    sizes = {} if layout == "c4" else {"anchor_sizes": (8, 16, 32, 64, 128)}
    detector = build_detector(
        slim(variant, extent), num_classes=3, layout=layout, freeze_bn=False, roi_size=8, **{**SMALL, **sizes}
    )
    images, targets = scene()
    losses = detector(images, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    without = [name for name, p in detector.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []
    with torch.no_grad():
        found = detector.eval()([*images, torch.rand(3, 50, 70)])
    assert len(found) == 3
    for one, (height, width) in zip(found, [(64, 80), (64, 80), (50, 70)], strict=True):
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert (one["scores"].diff() <= 0).all()


def test_other_networks():
    for backbone in (timm.create_model("resnet18", num_classes=5), build_model("shufflenet_g3", ge="theta", extent=2)):
        detector = build_detector(backbone, num_classes=3, freeze_bn=False, **SMALL)
        assert sum(detector(*scene()).values()).isfinite()


def test_a_parametrised_global_gather_needs_maps_of_one_size():
    for layout in ("c4", "fpn"):
        with pytest.raises(ValueError, match=r"extent='global'.* 16x16.* extent 2, 4 or 8, or .*theta_minus"):
            build_detector(slim_for(64, "theta"), num_classes=3, layout=layout)
    # In conv5 of c4 the maps are regions of one size: 7x7, as with images of 224.
    backbone = slim_for(224, "theta_plus", stages=(5,))
    detector = build_detector(backbone, num_classes=3, freeze_bn=False, **SMALL)
    assert sum(detector(*scene()).values()).isfinite()
    with pytest.raises(
        ValueError, match=r"roi_size=12: layer4, the box head, .* 7x7, but the input has 128 channels of 6x6"
    ):
        build_detector(slim_for(224, "theta_plus", stages=(5,)), num_classes=3, roi_size=12)


def slim_for(image_size, variant, stages=None):
    return add_gather_excite(slim(), variant=variant, extent="global", image_size=image_size, stages=stages)


def test_wrong_choices():
    with pytest.raises(ValueError, match="layout='c5': allowed are c4, fpn"):
        build_detector(slim(), num_classes=3, layout="c5")
    with pytest.raises(ValueError, match="num_classes=0: must be at least 1"):
        build_detector(slim(), num_classes=0)
    with pytest.raises(ValueError, match=r"anchor_sizes=\[32, 64\]: layout='fpn' has 5 levels here, of strides 4, 8"):
        build_detector(slim(), num_classes=3, layout="fpn", anchor_sizes=(32, 64))
    with pytest.raises(ValueError, match=r"pre-activation .* resnet50"):
        build_detector(build_model("resnet8"), num_classes=3)


def test_frozen_bn_stays_frozen():
    torch.manual_seed(0)  # with some weights a ReLU of GE is dead, and its bias gets no gradient
    network = slim("theta_plus")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if trained
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    others = {id(p) for m in network.modules() if not isinstance(m, nn.BatchNorm2d) for p in m.parameters(False)}
    detector = build_detector(network, num_classes=3, **SMALL)
    trained = {id(parameter) for parameter in detector.parameters() if parameter.requires_grad}
    assert others - trained == {id(parameter) for parameter in network.fc.parameters()}
    detector.train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in detector.modules())
    frozen = {name: module for name, module in detector.named_modules() if isinstance(module, FrozenBatchNorm2d)}
    assert len(frozen) == norms
    assert any(".gather." in name for name in frozen)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    optimizer = torch.optim.SGD(detector.parameters(), 0.01, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(detector(*scene()).values()).backward()
        optimizer.step()
    after = detector.state_dict()
    of_norms = {name for name in after if name.rpartition(".")[0] in frozen}
    assert len(of_norms) == 4 * norms
    assert all(torch.equal(before[name], after[name]) for name in of_norms)
    assert not any(torch.equal(before[name], after[name]) for name in after.keys() - of_norms)
    fresh = build_detector(slim("theta_plus"), num_classes=3, **SMALL)
    fresh.load_state_dict(after)


def test_a_step_does_not_depend_on_earlier_random_numbers():
    detector = build_detector(slim(), num_classes=3, freeze_bn=False, **SMALL)
    cpu, outcomes = torch.device("cpu"), []
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    for seed in (7, 7, 8):
        torch.rand(len(outcomes) + 1)
        detector.load_state_dict(state)
        before = torch.get_rng_state()
        with fixed_draws(seed, cpu):
            outcomes.append({name: loss.item() for name, loss in detector(*scene()).items()})
        assert torch.equal(torch.get_rng_state(), before)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != outcomes[2]


def test_by_default_the_losses_are_torchvisions():
    detector = build_detector(slim(), num_classes=3, **SMALL)
    assert type(detector.roi_heads) is RegionHeads
    ours, theirs = [], []
    for losses, kind in ((ours, RegionHeads), (theirs, RoIHeads)):
        detector.roi_heads.__class__ = kind
        with fixed_draws(3, torch.device("cpu")):
            losses += [loss.item() for loss in detector(*scene()).values()]
    assert ours == theirs


def test_the_boxes_loss_turns_linear_at_beta(monkeypatch):
    """Three regions: background, and two objects, off by 0.5 (quadratic with beta 1) and by 3 (linear)."""
    heads = build_detector(slim(), num_classes=3, box_beta=1.0, nms_at_test=0.3, **SMALL).roi_heads
    assert heads.nms_thresh == 0.3
    boxes = torch.zeros(3, 4, 4)
    boxes[1, 2], boxes[2, 3] = 0.5, 3.0
    labels, targets = torch.tensor([0, 2, 3]), torch.zeros(3, 4)
    monkeypatch.setattr(heads, "select_training_samples", lambda *_: ([], None, [labels], [targets]))
    for name in ("box_roi_pool", "box_head", "box_predictor"):
        monkeypatch.setattr(heads, name, nn.Identity())
    heads.box_roi_pool.forward = lambda *_: None
    heads.box_predictor.forward = lambda _: (torch.zeros(3, 4), boxes.flatten(1))
    _, losses = heads.train()({}, [], [])
    assert losses["loss_box_reg"].item() == pytest.approx(4 * (0.5 * 0.5**2 + (3 - 0.5)) / 3)
    assert losses["loss_classifier"].item() == pytest.approx(torch.tensor(4.0).log().item())


def test_an_image_without_boxes_can_be_trained_on():
    images, targets = scene()
    targets[0] = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)}
    detector = build_detector(slim(), num_classes=3, freeze_bn=False, **SMALL)
    assert sum(detector(images, targets).values()).isfinite()
