"""The reference feed: image by image, PIL and torchvision's transforms, in the plainest way there is."""

import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor, nn

from geexp.config.schema import DataConfig
from geexp.data.decode import take_conversions, to_eight_bits, to_rgb
from geexp.data.images import Images
from geexp.data.order import Key, mix
from geexp.data.reading import Batch, Unreadable, read_or_replace


def training_transform(data: DataConfig) -> T.Compose:
    """PIL image → normalised float tensor ``[C, H, W]``, with the data set's augmentation."""
    augmentation = data.augmentation
    steps: list[object] = []
    if augmentation.crop == "pad":
        steps.append(T.RandomCrop(data.image_size, padding=augmentation.pad))
    elif augmentation.crop == "resized":
        steps.append(T.RandomResizedCrop(data.image_size, (augmentation.least_area, 1.0)))
    else:
        steps += _centre(data)
    if augmentation.flip:
        steps.append(T.RandomHorizontalFlip())
    if augmentation.rotation:
        steps.append(T.RandomRotation(augmentation.rotation, T.InterpolationMode.BILINEAR))
    if augmentation.jitter:
        steps.append(ChannelJitter(augmentation.jitter))
    return _composed(data, steps)


def evaluation_transform(data: DataConfig) -> T.Compose:
    """PIL image → normalised float tensor ``[C, H, W]``; large images as in the paper: short side 256, centre 224."""
    return _composed(data, _centre(data))


class ChannelJitter(nn.Module):
    """Adds to each channel one whole number, drawn evenly from ``-levels … levels``, and clamps to 0 … 255.

    The "pixel jitter ±20" of the authors' repository; that it is one number per channel is our reading of it.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, image: Image.Image) -> Image.Image:
        pixels = TF.pil_to_tensor(image).int()
        shift = torch.randint(-self.levels, self.levels + 1, (len(pixels), 1, 1))
        return TF.to_pil_image((pixels + shift).clamp_(0, 255).to(torch.uint8))


def _centre(data: DataConfig) -> list[object]:
    if data.evaluation_crop is None:
        return []  # the images have their size already
    return [T.Resize(round(data.image_size * 256 / 224)), T.CenterCrop(data.image_size)]


def _composed(data: DataConfig, steps: list[object]) -> T.Compose:
    mode = [T.Lambda(to_eight_bits), T.Grayscale()] if data.channels == 1 else [T.Lambda(to_rgb)]
    return T.Compose([*mode, *steps, T.ToTensor(), T.Normalize(data.mean, data.std)])


class ReferenceReader:
    """Keys (epoch, index) → a batch of normalised float images ``[N, C, H, W]``.

    Augmentation is a pure function of (seed, epoch, index), whatever was drawn before.

    Args:
        replace: read others in place of unreadable images, instead of leaving them out.
    """

    def __init__(self, images: Images, transform: T.Compose, seed: int, *, replace: bool = False) -> None:
        self.images, self.transform, self.seed, self.replace = images, transform, seed, replace

    def __getitems__(self, keys: list[Key]) -> Batch:
        rows, labels = [], []
        unreadable: list[Unreadable] = []
        for key in keys:
            found = read_or_replace(
                self.images.picture, key, self.images, unreadable, seed=self.seed, replace=self.replace
            )
            if found is None:
                continue
            (epoch, _), (index, picture) = key, found
            rows.append(self._transformed(picture, epoch, index))
            labels.append(int(self.images.labels[index]))
        pixels = torch.stack(rows) if rows else torch.empty(0)
        return Batch(pixels, torch.tensor(labels, dtype=torch.int64), unreadable, conversions=take_conversions())

    def _transformed(self, picture: Image.Image, epoch: int, index: int) -> Tensor:
        # The transforms draw from the default generator. torch.manual_seed would also record a traceback for CUDA.
        state = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(mix(self.seed, epoch, index))
            return self.transform(picture)
        finally:
            torch.default_generator.set_state(state)
