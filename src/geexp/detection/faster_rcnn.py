"""Faster R-CNN on a residual backbone: ``build_detector``, of torchvision's parts.

``c4`` is the layout of He et al. 2016 ("Deep Residual Learning", appendix A) and so the paper's: all stages but the
last are computed once per image, proposals and regions come from their output, and the last stage is the box head.
``fpn`` is the feature pyramid of Lin et al. 2017, the usual baseline of today.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from geexp.backbones.anatomy import stages
from geexp.detection.parts import feature_parts, freeze_batch_norm, output_shape, refuse_fixed_size

LAYOUTS = ("c4", "fpn")

# Height and width from which strides are found; all of them divide it.
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
    image_mean: Sequence[float] = (0.485, 0.456, 0.406),
    image_std: Sequence[float] = (0.229, 0.224, 0.225),
    **options: Any,
) -> FasterRCNN:
    """A detector around ``backbone``, whose stages it takes over; the classifier is left out.

    In training: images (a list of float ``[3, H, W]`` in 0 … 1, sizes may differ) and targets (a list of dictionaries,
    ``boxes`` float ``[n, 4]``, x1 y1 x2 y2 in pixels, and ``labels`` int64 ``[n]`` in 1 … num_classes) → four losses by
    name. In evaluation: images → a list of ``boxes``, ``labels`` and ``scores``, best first, in each image's pixels.

    Args:
        backbone: a network of the ResNet family, ours or timm's, with its weights if there are any.
        num_classes: of objects, without the background, which is class 0 here.
        layout: ``c4`` or ``fpn``.
        min_size, max_size: images are scaled to this shorter side, or so that the longer is ``max_size`` if it would
            be beyond. 600 and 1000 are He et al. 2016's.
        anchor_sizes: square roots of the anchors' areas, in pixels of the scaled image. With ``c4`` each of them at
            every place, by default 2, 4, 8, 16 and 32 strides (32 to 512 pixels); with ``fpn`` one to each level, by
            default 8 of its strides (32 to 512 pixels with four stages).
        anchor_ratios: height by width.
        roi_size: side of the maps that RoIAlign gives the last stage, which halves it; ``c4`` only.
        freeze_bn: leave BN's statistics and affine parameters as they are, as He et al. 2016 do; those of GE's gathers
            too [choice]. A backbone without trained weights needs False.
        image_mean, image_std: of the normalisation, by channel.
        options: of torchvision's ``FasterRCNN``, such as ``box_batch_size_per_image``.

    Raises:
        ValueError: for an unknown layout, a wrong number of anchor sizes, a backbone whose stages cannot be used, and a
            gather with a kernel as large as the map where the maps are not of that size.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: allowed are {', '.join(LAYOUTS)}")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes!r}: must be at least 1; the background is not counted")
    if layout == "c4":
        pieces, sizes = _c4(backbone, num_classes, anchor_sizes, roi_size)
    else:
        pieces, sizes = _fpn(backbone, num_classes, anchor_sizes)
    if freeze_bn:
        freeze_batch_norm(pieces["backbone"])
        freeze_batch_norm(pieces["box_head"])
    return FasterRCNN(
        rpn_anchor_generator=AnchorGenerator(sizes, (tuple(anchor_ratios),) * len(sizes)),
        min_size=min_size,
        max_size=max_size,
        image_mean=list(image_mean),
        image_std=list(image_std),
        **pieces,
        **options,
    )


class SharedStages(nn.Sequential):
    """Images ``[N, 3, H, W]`` → the map of stride s for proposals and regions, ``[N, out_channels, H/s, W/s]``."""

    out_channels: int


class LastStageHead(nn.Module):
    """The last stage and the mean over its map: regions ``[R, C, r, r]`` → ``[R, channels]``."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, regions: Tensor) -> Tensor:
        return self.stage(regions).mean((2, 3))


# Each gives what FasterRCNN is made of, and the anchors' sizes by level.
_Pieces = tuple[dict[str, Any], tuple[tuple[int, ...], ...]]


def _c4(backbone: nn.Module, num_classes: int, anchor_sizes: Sequence[int] | None, roi_size: int) -> _Pieces:
    parts = feature_parts(backbone)
    name, last = parts.popitem()
    shared = SharedStages(parts)
    refuse_fixed_size(shared)
    shared.out_channels, height, _ = output_shape(shared, 3, _PROBE, _PROBE)
    stride = _PROBE // height
    try:
        channels, _, _ = output_shape(last, shared.out_channels, roi_size, roi_size)
    except ValueError as error:
        raise ValueError(
            f"roi_size={roi_size}: {name}, the box head, cannot have regions of this size: {error}"
        ) from error
    sizes = tuple(stride * factor for factor in (2, 4, 8, 16, 32)) if anchor_sizes is None else tuple(anchor_sizes)
    pieces = {
        "backbone": shared,
        "box_roi_pool": MultiScaleRoIAlign(["0"], roi_size, sampling_ratio=2),
        "box_head": LastStageHead(last),
        "box_predictor": _predictor(channels, num_classes),
        "size_divisible": stride,
    }
    return pieces, (sizes,)


def _fpn(backbone: nn.Module, num_classes: int, anchor_sizes: Sequence[int] | None) -> _Pieces:
    parts = feature_parts(backbone)
    shape, channels, strides = (3, _PROBE, _PROBE), [], []
    levels = {f"layer{stage - 1}": str(level) for level, stage in enumerate(stages(backbone))}
    for name, part in parts.items():
        refuse_fixed_size(part)
        shape = output_shape(part, *shape)
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
    pieces = {
        "backbone": BackboneWithFPN(nn.Sequential(parts), levels, channels, _FPN_CHANNELS),
        "box_roi_pool": MultiScaleRoIAlign(list(levels.values()), _FPN_ROI, sampling_ratio=2),
        "box_head": TwoMLPHead(_FPN_CHANNELS * _FPN_ROI**2, _FPN_HIDDEN),
        "box_predictor": _predictor(_FPN_HIDDEN, num_classes),
        "size_divisible": strides[-2],
    }
    return pieces, tuple((size,) for size in sizes)


def _predictor(channels: int, num_classes: int) -> FastRCNNPredictor:
    """Classes N(0, 0.01²), boxes N(0, 0.001²), zero biases: Girshick 2015's ("Fast R-CNN")."""
    predictor = FastRCNNPredictor(channels, num_classes + 1)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return predictor
