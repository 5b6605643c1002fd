"""Faster R-CNN on a residual backbone: ``build_detector``, from torchvision's parts.

``c4`` is the layout of He et al. 2016 ("Deep Residual Learning", appendix A) and therefore the paper's: all stages but
the last are computed once per image and feed the proposals and RoIAlign; the last stage is the box head. ``fpn`` is the
feature pyramid of Lin et al. 2017, today's usual baseline.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from geexp.backbones.anatomy import dry_run, stages
from geexp.operators import DepthwiseProduct

LAYOUTS = ("c4", "fpn")

# Input size for measuring strides, which all divide it.
_PROBE = 256
# Lin et al. 2017: channels of the pyramid, size of the regions, width of the two hidden layers.
_FPN_CHANNELS, _FPN_ROI, _FPN_HIDDEN = 256, 7, 1024


def build_detector(
    backbone: nn.Module,
    *,
    num_classes: int,
    layout: str = "c4",
    min_size: int = 600,
    max_size: int = 1000,
    anchor_sizes: Sequence[int] | None = None,
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    roi_size: int = 14,
    freeze_bn: bool = True,
    regions: int = 512,
    box_beta: float = 1 / 9,
    nms_at_test: float = 0.5,
    image_mean: Sequence[float] = (0.485, 0.456, 0.406),
    image_std: Sequence[float] = (0.229, 0.224, 0.225),
    **options: Any,
) -> FasterRCNN:
    """A detector that shares the modules of ``backbone``, without its classifier.

    In training: images (a list of float ``[3, H, W]`` in 0 … 1, sizes may differ) and targets (a list of dictionaries,
    ``boxes`` float ``[n, 4]``, x1 y1 x2 y2 in pixels, and ``labels`` int64 ``[n]`` in 1 … num_classes) → four losses by
    name. In evaluation: images → a list of ``boxes``, ``labels`` and ``scores``, best first, in each image's pixels.

    Args:
        backbone: a network of the ResNet family, ours or timm's, with any pretrained weights loaded.
        num_classes: number of object classes, without the background, which is class 0 here.
        layout: ``c4`` or ``fpn``.
        min_size, max_size: images are scaled to this shorter side, or less so that the longer side is at most
            ``max_size``. 600 and 1000 are from He et al. 2016.
        anchor_sizes: square roots of the anchors' areas, in pixels of the scaled image. With ``c4`` all of them at
            every position, by default 2, 4, 8, 16 and 32 strides (32 to 512 pixels); with ``fpn`` one per level, by
            default 8 strides of the level (32 to 512 pixels with four stages).
        anchor_ratios: height / width.
        roi_size: output size of RoIAlign, the input of the last stage, which halves it; ``c4`` only.
        freeze_bn: keep the statistics and affine parameters of BN fixed, as He et al. 2016 do; those in GE's gathers
            too [choice]. A backbone without trained weights needs False.
        regions: per image, on which the box head learns.
        box_beta: the difference at which the box head's smooth L1 loss turns from quadratic to linear; 1 in
            py-faster-rcnn, whose proposals have 1/9, and 1/9 for both in torchvision.
        nms_at_test: IoU above which the lower-scored of two detections of a class is dropped; 0.3 in py-faster-rcnn.
        image_mean, image_std: normalisation by channel.
        options: further arguments of torchvision's ``FasterRCNN``, for the proposals (``rpn_…``).

    Raises:
        ValueError: for an unknown layout, a wrong number of anchor sizes, a backbone whose stages cannot be used, and a
            gather with a kernel as large as the map where maps vary in size.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: allowed are {', '.join(LAYOUTS)}")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes!r}: must be at least 1; the background is not counted")
    if layout == "c4":
        parts, sizes = _c4(backbone, num_classes, anchor_sizes, roi_size)
    else:
        parts, sizes = _fpn(backbone, num_classes, anchor_sizes)
    if freeze_bn:
        freeze_batch_norm(parts["backbone"])
        freeze_batch_norm(parts["box_head"])
    detector = FasterRCNN(
        rpn_anchor_generator=AnchorGenerator(sizes, (tuple(anchor_ratios),) * len(sizes)),
        min_size=min_size,
        max_size=max_size,
        image_mean=list(image_mean),
        image_std=list(image_std),
        **parts,
        **options,
    )
    detector.roi_heads = RegionHeads(
        parts["box_roi_pool"],
        parts["box_head"],
        parts["box_predictor"],
        beta=box_beta,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=regions,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=nms_at_test,
        detections_per_img=100,
    )
    return detector


class RegionHeads(RoIHeads):
    """torchvision's classifier and regression of regions, with a ``beta`` for the smooth L1 loss of the boxes."""

    def __init__(self, *parts: Any, beta: float, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.beta = beta

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        regions, _, labels, box_targets = self.select_training_samples(proposals, targets)
        logits, boxes = self.box_predictor(self.box_head(self.box_roi_pool(features, regions, image_shapes)))
        label, box_target = torch.cat(labels), torch.cat(box_targets)
        (objects,) = label.nonzero(as_tuple=True)
        of_class = boxes.unflatten(1, (-1, 4))[objects, label[objects]]
        box_loss = F.smooth_l1_loss(of_class, box_target[objects], beta=self.beta, reduction="sum") / len(label)
        return [], {"loss_classifier": F.cross_entropy(logits, label), "loss_box_reg": box_loss}


class SharedStages(nn.Sequential):
    """Images ``[N, 3, H, W]`` → the feature map of stride s, ``[N, out_channels, H/s, W/s]``."""

    out_channels: int


class LastStageHead(nn.Module):
    """The last stage, then global average pooling: regions ``[R, C, r, r]`` → ``[R, channels]``."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, regions: Tensor) -> Tensor:
        return self.stage(regions).mean((2, 3))


# Arguments of FasterRCNN, and the anchor sizes by level.
_Parts = tuple[dict[str, Any], tuple[tuple[int, ...], ...]]


def _c4(backbone: nn.Module, num_classes: int, anchor_sizes: Sequence[int] | None, roi_size: int) -> _Parts:
    children = feature_children(backbone)
    name, last = children.popitem()
    shared = SharedStages(children)
    refuse_fixed_size(shared)
    shared.out_channels, height, _ = output_shape(shared, 3, _PROBE, _PROBE)
    stride = _PROBE // height
    try:
        channels, _, _ = output_shape(last, shared.out_channels, roi_size, roi_size)
    except ValueError as error:
        raise ValueError(
            f"roi_size={roi_size}: {name}, the box head, does not take regions of this size: {error}"
        ) from error
    sizes = tuple(stride * factor for factor in (2, 4, 8, 16, 32)) if anchor_sizes is None else tuple(anchor_sizes)
    parts = {
        "backbone": shared,
        "box_roi_pool": MultiScaleRoIAlign(["0"], roi_size, sampling_ratio=2),
        "box_head": LastStageHead(last),
        "box_predictor": _predictor(channels, num_classes),
        "size_divisible": stride,
    }
    return parts, (sizes,)


def _fpn(backbone: nn.Module, num_classes: int, anchor_sizes: Sequence[int] | None) -> _Parts:
    children = feature_children(backbone)
    shape, channels, strides = (3, _PROBE, _PROBE), [], []
    levels = {f"layer{stage - 1}": str(level) for level, stage in enumerate(stages(backbone))}
    for name, child in children.items():
        refuse_fixed_size(child)
        shape = output_shape(child, *shape)
        if name in levels:
            channels.append(shape[0])
            strides.append(_PROBE // shape[1])
    strides.append(2 * strides[-1])  # the level that FPN adds by subsampling, for proposals only
    sizes = [8 * stride for stride in strides] if anchor_sizes is None else list(anchor_sizes)
    if len(sizes) != len(strides):
        raise ValueError(
            f"anchor_sizes={sizes}: layout='fpn' has {len(strides)} levels here, of strides "
            f"{', '.join(map(str, strides))}, and needs one size for each"
        )
    parts = {
        "backbone": BackboneWithFPN(nn.Sequential(children), levels, channels, _FPN_CHANNELS),
        "box_roi_pool": MultiScaleRoIAlign(list(levels.values()), _FPN_ROI, sampling_ratio=2),
        "box_head": TwoMLPHead(_FPN_CHANNELS * _FPN_ROI**2, _FPN_HIDDEN),
        "box_predictor": _predictor(_FPN_HIDDEN, num_classes),
        "size_divisible": strides[-2],
    }
    return parts, tuple((size,) for size in sizes)


def _predictor(channels: int, num_classes: int) -> FastRCNNPredictor:
    """Initialised as in Girshick 2015 ("Fast R-CNN"): classes N(0, 0.01²), boxes N(0, 0.001²), zero biases."""
    predictor = FastRCNNPredictor(channels, num_classes + 1)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return predictor


def feature_children(backbone: nn.Module) -> OrderedDict[str, nn.Module]:
    """The children of a backbone up to its last stage, by name and in order: the stem, then the stages.

    Raises:
        ValueError: for a network without stages, or whose stages do not end in an activation.
    """
    if getattr(backbone, "preactivated", False):
        raise ValueError(
            "the stages of a pre-activation network end in a sum without BN and ReLU, which a detector cannot use: "
            "choose resnet50, resnet101, resnet152, shufflenet_g3 or one of timm's ResNets"
        )
    last = list(stages(backbone).values())[-1]
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in backbone.named_children():
        children[name] = child
        if child is last:
            break
    return children


def output_shape(module: nn.Module, channels: int, height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of the output of ``module`` for one map of this shape; a dry run, without computation."""
    _, C, H, W = dry_run(module, (channels, height, width)).shape
    return C, H, W


def refuse_fixed_size(module: nn.Module) -> None:
    """Raise ``ValueError`` if a gather in ``module`` works at one map size only."""
    for child in module.modules():
        if isinstance(child, DepthwiseProduct):
            H, W = child.kernel_size
            raise ValueError(
                f"extent='global': GE-θ and GE-θ⁺ gather with a kernel as large as the map, here {H}x{W}, but the maps "
                "of a detector vary with its images. Choose extent 2, 4 or 8, or a variant that pools (theta_minus, se)"
            )


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every BN in ``module``, also in GE's gathers, by the fixed affine map that it is in evaluation.

    Its four tensors become buffers of the same names: ``train()`` has no effect on them, and no optimiser gets them.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps).to(child.weight)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)
