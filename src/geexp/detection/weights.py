"""The weights that a detector's backbone starts from."""

from pathlib import Path

from torch import nn

from geexp.backbones.anatomy import stages
from geexp.training.weights import Loaded, load_weights


def load_backbone(backbone: nn.Module, path: Path | None) -> Loaded:
    """Load weights into ``backbone``, before a detector is built from it; see ``load_weights``. None loads nothing.

    The classifier is left out.

    Raises:
        DataError: as ``load_weights``.
    """
    if path is None:
        return Loaded("the backbone starts from random weights")
    description, run = load_weights(backbone, path, classifier=False)
    first = stages(backbone)[3][0]
    if run is None and getattr(getattr(first, "conv1", None), "stride", None) == (2, 2):
        description += "; torchvision's and timm's weights are for stride_in=3x3, but this backbone has 1x1"
    return Loaded(description, run)
