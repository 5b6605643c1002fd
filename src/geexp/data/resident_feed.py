"""The resident feed: a whole split as uint8 on the device; a batch, padded, cropped and mirrored, is one indexing."""

import torch
import torch.nn.functional as F
from torch import Tensor

from geexp.config.schema import AugmentationConfig
from geexp.data.images import ArrayImages
from geexp.data.order import Key, mix
from geexp.data.reading import Batch


class ResidentImages:
    """Batches ``uint8 [N, C, S, S]`` in channels_last memory, on ``device``.

    Every image is cropped to one of the ``(2 * pad + 1) ** 2`` windows of its zero-padded self and mirrored or not, all
    equally likely: the distribution of ``RandomCrop(S, padding=pad)`` and ``RandomHorizontalFlip``, not their draws.
    Takes ``2 (S + 2 pad)² C`` bytes an image, half of that without mirroring.

    Args:
        augmentation: None for evaluation: the images as they are.
    """

    def __init__(
        self,
        images: ArrayImages,
        augmentation: AugmentationConfig | None,
        *,
        channels: int,
        seed: int,
        device: torch.device,
    ) -> None:
        pixels = torch.tensor(images.images, device=device)
        pixels = pixels if pixels.ndim == 4 else pixels[..., None].expand(-1, -1, -1, channels)
        pad = augmentation.pad if augmentation is not None and augmentation.crop == "pad" else 0
        padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
        flip = augmentation is not None and augmentation.flip
        both = torch.stack([padded, padded.flip(2)]) if flip else padded[None]
        size = pixels.shape[1]
        # [mirrored, image, top, left, S, S, C]: a view in which every window of every image has its place.
        self._windows = both.unfold(2, size, 1).unfold(3, size, 1).permute(0, 1, 2, 3, 5, 6, 4)
        self._labels = torch.tensor(images.labels, device=device)
        self._seed, self._device = seed, device
        self._draws: tuple[int, Tensor] | None = None

    def __getitems__(self, keys: list[Key]) -> Batch:
        return self.batch(keys[0][0], torch.tensor([index for _, index in keys]))

    def batch(self, epoch: int, indices: Tensor) -> Batch:
        """The images ``indices`` [N] as they look in an epoch: a pure function of (seed, epoch, index)."""
        indices = self._moved(indices)
        drawn = self._drawn(epoch)[indices]
        _, _, tops, lefts, *_ = self._windows.shape
        images = self.window(indices, drawn // (tops * lefts), drawn // lefts % tops, drawn % lefts)
        return Batch(images, self._labels[indices])

    def window(self, indices: Tensor, mirrored: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """The windows at ``top``, ``left`` of the padded images, then mirrored where ``mirrored`` is 1; all [N]."""
        last = self._windows.shape[3] - 1
        left = torch.where(mirrored.bool(), last - left, left)  # in the mirrored image it lies on the other side
        return self._windows[mirrored, indices, top, left].permute(0, 3, 1, 2)

    def _drawn(self, epoch: int) -> Tensor:
        """One of all mirrored and unmirrored windows for every image, drawn for the epoch as a whole."""
        if self._draws is None or self._draws[0] != epoch:
            mirrored, images, tops, lefts, *_ = self._windows.shape
            generator = torch.Generator().manual_seed(mix(self._seed, "windows", epoch))
            drawn = torch.randint(0, mirrored * tops * lefts, (images,), generator=generator)
            self._draws = (epoch, self._moved(drawn))
        return self._draws[1]

    def _moved(self, indices: Tensor) -> Tensor:
        if self._device.type == "cuda":
            indices = indices.pin_memory()  # the CPU waits for a copy from other memory
        return indices.to(self._device, non_blocking=True)
