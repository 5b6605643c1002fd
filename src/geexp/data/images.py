"""The common form of all data sets: labels, names for messages, and pictures by index."""

from abc import ABC, abstractmethod
from copy import copy
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geexp.config.errors import ConfigError
from geexp.data.decode import Decoder, open_with_pil, to_rgb
from geexp.data.parallel import with_bar
from geexp.runs.data_record import SplitRecord, digest_of


class Images(ABC):
    """``labels`` [n] int64, and a picture by its index."""

    classes: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """The file or the place, for messages."""

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """For the reference feed."""

    @abstractmethod
    def pixels(self, index: int, decode: Decoder) -> Tensor:
        """``uint8 [H, W, 3]``, for the fast feeds."""

    def record(self) -> SplitRecord:
        """For the run's ``data.json``."""
        return SplitRecord(len(self), digest_of([self.labels.tobytes()]))

    def first_classes(self, n: int) -> Self:
        """The same kind of images, of the first ``n`` classes only, for sets in the order of their classes."""
        first = copy(self)
        first.classes, first.labels = self.classes[:n], self.labels[: int(np.searchsorted(self.labels, n))]
        return first


class EncodedImages(Images):
    """Images that are kept as the content of image files."""

    @abstractmethod
    def relative_name(self, index: int) -> str:
        """``<class>/<file>``."""

    def size(self, index: int) -> int:
        """Bytes of the content."""
        return len(self.content(index))

    @abstractmethod
    def content(self, index: int) -> np.ndarray:
        """``uint8 [bytes]``, writable, because torch warns of arrays that are not."""

    def picture(self, index: int) -> Image.Image:
        return open_with_pil(self.content(index))

    def pixels(self, index: int, decode: Decoder) -> Tensor:
        return decode(self.content(index))


class ArrayImages(Images):
    """Images of one size held in memory as one array, ``uint8 [N, H, W]`` or ``[N, H, W, 3]``."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: list[str] | None = None) -> None:
        self.images, self.labels = images, labels.astype(np.int64)
        self.classes = [str(label) for label in np.unique(labels)] if classes is None else classes

    def name(self, index: int) -> str:
        return f"image {index}"

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def pixels(self, index: int, decode: Decoder) -> Tensor:
        image = torch.from_numpy(self.images[index])
        return image if image.ndim == 3 else image[..., None].expand(-1, -1, 3)

    def first_classes(self, n: int) -> Self:
        kept = self.labels < n
        return type(self)(self.images[kept], self.labels[kept], self.classes[:n])


class MapStyleImages(Images):
    """A user's own data set: anything with ``len`` and ``[index]`` → (image, label from 0 on).

    Images are PIL images, arrays or tensors: ``uint8``, ``[H, W]``, ``[H, W, C]`` or, as a tensor, ``[C, H, W]``. The
    labels are the data set's ``targets`` or ``labels``, or else every item is read once; ``classes`` names the classes.

    Args:
        target: the import path that it came from, for messages.
        classes: the number of classes, unless the data set names them.

    Raises:
        ConfigError: for labels or images of another kind.
    """

    def __init__(self, dataset: Any, target: str, classes: int) -> None:
        self.dataset, self.target = dataset, target
        labels = getattr(dataset, "targets", None)
        labels = getattr(dataset, "labels", None) if labels is None else labels
        if labels is None or len(labels) != len(dataset):
            labels = [dataset[index][1] for index in with_bar(range(len(dataset)), f"reading the labels of {target}")]
        self.labels = np.array([int(label) for label in labels], dtype=np.int64)
        self.numbers = np.arange(len(self.labels))
        names = getattr(dataset, "classes", None)
        found = int(self.labels.max(initial=-1)) + 1
        self.classes = list(map(str, range(max(classes, found)) if names is None else names))
        if len(self) and (self.labels.min() < 0 or found > len(self.classes)):
            raise ConfigError(
                f"data._target_={target}: its labels go from {self.labels.min()} to {found - 1}, and must be from 0 "
                f"to {len(self.classes) - 1}, one for each of its classes."
            )
        if len(self):
            self.picture(0)

    def name(self, index: int) -> str:
        return f"image {self.numbers[index]}"

    def picture(self, index: int) -> Image.Image:
        try:
            image = self.dataset[int(self.numbers[index])][0]
        except ValueError as error:  # feeds would take it for a damaged file
            raise RuntimeError(f"data._target_={self.target}: {self.name(index)} raised {error!r}") from error
        if isinstance(image, Image.Image):
            return image
        pixels = image.cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
        if isinstance(image, Tensor) and image.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,), (4,)):
            raise ConfigError(
                f"data._target_={self.target}: {self.name(index)} is {type(image).__name__} of {pixels.dtype} and "
                f"shape {tuple(np.shape(image))}. Return a PIL image, or uint8 [H, W], [H, W, C], or [C, H, W] as a "
                "tensor: without ToTensor and normalisation, which the feeds do."
            )
        return Image.fromarray(np.ascontiguousarray(pixels))

    def pixels(self, index: int, decode: Decoder) -> Tensor:
        return torch.from_numpy(np.array(to_rgb(self.picture(index))))

    def first_classes(self, n: int) -> Self:
        first, chosen = copy(self), self.labels < n
        first.classes, first.labels, first.numbers = self.classes[:n], self.labels[chosen], self.numbers[chosen]
        return first
