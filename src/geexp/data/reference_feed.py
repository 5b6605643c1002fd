"""The reference feed: image by image, PIL and torchvision's transforms, in the plainest way there is.

Augmentation is a pure function of (seed, epoch, index): it depends neither on the number of workers nor on what was
drawn before, so a resumed run sees what an uninterrupted one would have seen.
"""

import hashlib
from collections.abc import Iterator

import torch
import torchvision.transforms as T
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from geexp.config.errors import DataError
from geexp.config.schema import DataConfig


def training_transform(data: DataConfig) -> T.Compose:
    """PIL image → normalised float tensor ``[C, H, W]``, with the data set's augmentation."""
    augmentation = data.augmentation
    steps: list[object] = []
    if augmentation.crop == "pad":
        steps.append(T.RandomCrop(data.image_size, padding=augmentation.pad))
    elif augmentation.crop == "resized":
        steps.append(T.RandomResizedCrop(data.image_size))
    else:
        steps += _centre(data)
    if augmentation.flip:
        steps.append(T.RandomHorizontalFlip())
    return T.Compose([*steps, *_to_tensor(data)])


def evaluation_transform(data: DataConfig) -> T.Compose:
    """PIL image → normalised float tensor ``[C, H, W]``; large images as in the paper: short side 256, centre 224."""
    return T.Compose([*_centre(data), *_to_tensor(data)])


def _centre(data: DataConfig) -> list[object]:
    if data.evaluation_crop is None:
        return []  # the images have their size already
    return [T.Resize(round(data.image_size * 256 / 224)), T.CenterCrop(data.image_size)]


def _to_tensor(data: DataConfig) -> list[object]:
    mode = T.Grayscale() if data.channels == 1 else T.Lambda(_rgb)
    return [mode, T.ToTensor(), T.Normalize(data.mean, data.std)]


def _rgb(image):
    return image.convert("RGB")


class TransformedImages(Dataset):
    """(tensor, label) by index, or by (epoch, index) where the epoch takes part in the randomness."""

    def __init__(self, images: Dataset, transform: T.Compose, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        try:
            image, label = self.images[index]
        except (OSError, SyntaxError) as error:
            files = getattr(self.images, "samples", None)
            name = files[index][0] if files else f"image {index}"
            raise DataError(f"cannot read {name} (sample {index}): {error}") from error
        # The transforms draw from the default generator. torch.manual_seed would also record a traceback for CUDA.
        state = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(mix(self.seed, epoch, index))
            return self.transform(image), label
        finally:
            torch.default_generator.set_state(state)


class EpochSampler(Sampler[tuple[int, int]]):
    """A permutation of n samples that is a pure function of (seed, epoch); yields (epoch, index)."""

    def __init__(self, n: int, *, seed: int, epoch: int = 0) -> None:
        self.n, self.seed, self.epoch = n, seed, epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mix(self.seed, "order", self.epoch))
        for index in torch.randperm(self.n, generator=generator).tolist():
            yield self.epoch, index


def mix(*parts: object) -> int:
    """A 63-bit seed from any parts, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
