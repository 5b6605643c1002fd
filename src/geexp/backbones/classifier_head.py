"""The head that our own backbones share, with the names by which timm and its users handle it."""

from abc import abstractmethod

from torch import Tensor, nn


class ClassifierHead(nn.Module):
    """Base of a backbone: features ``[N, num_features, h, w]`` → global average → logits ``[N, num_classes]``.

    A subclass gives ``forward_features``. With ``num_classes=0`` the output is the averaged features.
    """

    num_features: int
    num_classes: int
    fc: nn.Module

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[N, in_channels, H, W]`` → the last stage's map."""

    def after_stages(self, x: Tensor) -> Tensor:
        """The end of ``forward_features``, behind the last stage's last block: nothing, unless a subclass has it."""
        return x

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features → logits; with ``pre_logits`` → the averaged features ``[N, num_features]``."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier for another number of classes, initialised N(0, 0.01²) with zero biases."""
        self.num_classes = num_classes
        if num_classes == 0:
            self.fc = nn.Identity()
            return
        self.fc = nn.Linear(self.num_features, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
