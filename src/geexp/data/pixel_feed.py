"""The fast way from image files to batches: decode, crop, resize in uint8 ``[H, W, 3]``, into one buffer per batch.

Draws the same crops, flips, turns and shifts as the reference feed from the same (seed, epoch, index): the two differ
by the rounding of the resizing only.
"""

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from geexp.config.schema import AugmentationConfig, DataConfig
from geexp.data.decode import Decoder, take_conversions
from geexp.data.images import Images
from geexp.data.order import Key, mix
from geexp.data.parallel import read_ahead
from geexp.data.reading import Batch, Order, Unreadable, read_or_replace

_ROWS = 8  # of one task of a thread
_BATCHES_AHEAD = 2
_MISSING = -1  # the label of a row that is not filled

_ASPECT = (3 / 4, 4 / 3)  # RandomResizedCrop's own default, with which the reference feed makes it
_LOG_ASPECT = torch.log(torch.tensor(_ASPECT)).tolist()  # in float32, as there


class PixelReader:
    """Keys (epoch, index) → a batch ``uint8 [N, 3, S, S]`` in channels_last memory; many threads may read its rows.

    Args:
        augmentation: None for evaluation: the short side resized to ``S * 256 / 224``, then the centre.
        replace: read others in place of unreadable images, instead of leaving them out.
    """

    def __init__(
        self,
        images: Images,
        decode: Decoder,
        data: DataConfig,
        augmentation: AugmentationConfig | None,
        seed: int,
        *,
        replace: bool = False,
    ) -> None:
        self.images, self.decode, self.seed, self.replace = images, decode, seed, replace
        self.size, self.augmentation = data.image_size, augmentation

    def __getitems__(self, keys: list[Key]) -> Batch:
        batch = self.new_batch(keys)
        return self.finish(batch, self.read_rows(batch, keys, 0, len(keys)))

    def new_batch(self, keys: list[Key], *, pin: bool = False) -> Batch:
        buffer = torch.empty((len(keys), self.size, self.size, 3), dtype=torch.uint8, pin_memory=pin)
        return Batch(buffer.permute(0, 3, 1, 2), torch.full((len(keys),), _MISSING, pin_memory=pin))

    def read_rows(self, batch: Batch, keys: list[Key], first: int, last: int) -> list[Unreadable]:
        """Fill the rows ``first`` to ``last``, the last one excluded; returns what could not be read."""
        unreadable: list[Unreadable] = []
        # torch would start threads of its own for a copy
        rows, labels = batch.images.permute(0, 2, 3, 1).numpy(), batch.labels.numpy()
        for place, key in enumerate(keys[first:last], start=first):
            found = read_or_replace(self._pixels, key, self.images, unreadable, seed=self.seed, replace=self.replace)
            if found is None:
                continue
            (epoch, _), (index, pixels) = key, found
            labels[place] = self.images.labels[index]
            if self.augmentation is None:
                np.copyto(rows[place], centre(pixels, self.size).numpy())
            else:
                generator = Generator().manual_seed(mix(self.seed, epoch, index))
                np.copyto(rows[place], augmented(pixels, self.size, self.augmentation, generator))
        return unreadable

    def finish(self, batch: Batch, unreadable: list[Unreadable]) -> Batch:
        """The batch without the rows that could not be read."""
        batch.fallbacks, batch.unreadable = self.decode.take_fallbacks(), unreadable
        batch.conversions = take_conversions()
        if unreadable:
            good = batch.labels != _MISSING
            batch.images, batch.labels = batch.images[good], batch.labels[good]
        return batch

    def _pixels(self, index: int) -> Tensor:
        return self.images.pixels(index, self.decode)


def read_with_threads(reader: PixelReader, order: Order, threads: int, *, pin: bool = False) -> Iterator[Batch]:
    """Batches in order; ``threads`` threads share the rows of the next ones.

    Args:
        pin: in memory from which a GPU copies while it computes.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="feed") as pool:

        def begin(keys: list[Key]) -> tuple[Batch, list[Future[list[Unreadable]]]]:
            batch = reader.new_batch(keys, pin=pin)
            starts = range(0, len(keys), _ROWS)
            tasks = [pool.submit(reader.read_rows, batch, keys, s, min(s + _ROWS, len(keys))) for s in starts]
            return batch, tasks

        try:
            for batch, tasks in read_ahead(map(begin, order), _BATCHES_AHEAD):
                yield reader.finish(batch, [one for task in tasks for one in task.result()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def augmented(pixels: Tensor, size: int, augmentation: AugmentationConfig, generator: Generator) -> np.ndarray:
    """``uint8 [H, W, 3]`` → ``uint8 [size, size, 3]``; draws in the order in which the reference's transforms draw."""
    if augmentation.crop == "resized":
        top, left, height, width = resized_crop_box(
            pixels.shape[0], pixels.shape[1], augmentation.least_area, generator
        )
        # Copied by numpy: torch would copy what is not contiguous with threads of its own, for every thread of ours.
        crop = np.ascontiguousarray(pixels.numpy()[top : top + height, left : left + width])
        image = resize(torch.from_numpy(crop), size, size).numpy()
    else:
        image = centre(pixels, size).numpy()
    if augmentation.flip and torch.rand(1, generator=generator).item() < 0.5:
        image = image[:, ::-1]
    if augmentation.rotation:
        angle = torch.empty(1).uniform_(-augmentation.rotation, augmentation.rotation, generator=generator).item()
        image = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR))
    if augmentation.jitter:
        shift = torch.randint(-augmentation.jitter, augmentation.jitter + 1, (3,), generator=generator).numpy()
        image = np.clip(image + shift.astype(np.int16), 0, 255).astype(np.uint8)
    return image


def resized_crop_box(height: int, width: int, least_area: float, generator: Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop; draws what ``RandomResizedCrop`` draws.

    torchvision draws from the one default generator, which threads cannot share.
    """
    area = height * width
    for _ in range(10):
        target = area * torch.empty(1).uniform_(least_area, 1.0, generator=generator).item()
        aspect = torch.exp(torch.empty(1).uniform_(*_LOG_ASPECT, generator=generator)).item()
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator).item())
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator).item())
            return top, left, h, w
    # No crop that was drawn fits, as in very long images: the largest central one of an allowed aspect.
    h, w = min(height, round(width / _ASPECT[0])), min(width, round(height * _ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def centre(pixels: Tensor, size: int) -> Tensor:
    """The short side resized to ``size * 256 / 224`` whole, then the centre; rounds as torchvision does."""
    height, width = pixels.shape[:2]
    short = round(size * 256 / 224)
    if height <= width:
        height, width = short, int(short * width / height)
    else:
        height, width = int(short * height / width), short
    image = resize(pixels, height, width)
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return image[top : top + size, left : left + size]


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing, as PIL resizes; ``[H, W, 3]`` memory takes the fast path of torch's kernel."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = pixels[None].permute(0, 3, 1, 2)  # in this order, so that torch sees channels_last memory
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
