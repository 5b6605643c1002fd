"""What every data set gives, whatever it is stored as: labels, names for messages, and pictures by index."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from geexp.data.decode import Decoder, open_with_pil


class Images(Protocol):
    """``labels`` [n] int64; a picture as PIL image (the reference) or as ``uint8 [H, W, 3]`` (the fast feeds)."""

    classes: list[str]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Which file or place it is, for a person."""

    def picture(self, index: int) -> Image.Image: ...

    def pixels(self, index: int, decode: Decoder) -> Tensor: ...


class Split(Images, Protocol):
    """Images of all the classes, of which one can have fewer."""

    def first_classes(self, n: int) -> Images:
        """The same kind of images, of the first ``n`` classes only; each keeps its name."""


@runtime_checkable
class EncodedImages(Protocol):
    """Images that are kept as the content of image files."""

    classes: list[str]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def content(self, index: int) -> np.ndarray:
        """``uint8 [bytes]``, writable (nobody does; torch warns of arrays that are not)."""


class Decoding:
    """Makes ``EncodedImages`` into ``Images``."""

    def picture(self: EncodedImages, index: int) -> Image.Image:
        return open_with_pil(self.content(index))

    def pixels(self: EncodedImages, index: int, decode: Decoder) -> Tensor:
        return decode(self.content(index))


class ArrayImages:
    """Images of one size held in memory as one array, ``uint8 [N, H, W]`` or ``[N, H, W, 3]``.

    Args:
        numbers: ``int64 [N]``, the places by which they are named; None: from 0 on.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: list[str] | None = None,
        numbers: np.ndarray | None = None,
    ) -> None:
        self.images, self.labels = images, labels.astype(np.int64)
        self.classes = [str(label) for label in np.unique(labels)] if classes is None else classes
        self.numbers = np.arange(len(labels)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"image {self.numbers[index]}"

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def pixels(self, index: int, decode: Decoder) -> Tensor:
        image = torch.from_numpy(self.images[index])
        return image if image.ndim == 3 else image[..., None].expand(-1, -1, 3)

    def first_classes(self, n: int) -> "ArrayImages":
        kept = self.labels < n
        return ArrayImages(self.images[kept], self.labels[kept], self.classes[:n], self.numbers[kept])


class MapStyleImages:
    """A user's own data set: anything with ``len`` and ``[index]`` → (image, label).

    Images are PIL images, arrays or tensors: ``uint8``, ``[H, W]``, ``[H, W, C]`` or, as a tensor, ``[C, H, W]``.

    Args:
        classes: how many classes there are; their names are the data set's ``classes``, if it has any.
    """

    def __init__(self, dataset: Any, classes: int) -> None:
        self.dataset = dataset
        names = getattr(dataset, "classes", None)
        self.classes = [str(name) for name in names] if names is not None else [str(i) for i in range(classes)]
        targets = getattr(dataset, "targets", None)
        if targets is None:
            targets = [dataset[i][1] for i in range(len(dataset))]
        self.labels = np.array([int(target) for target in targets], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"image {index}"

    def picture(self, index: int) -> Image.Image:
        image = self.dataset[index][0]
        if isinstance(image, Tensor):
            image = image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
        return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image).squeeze())

    def pixels(self, index: int, decode: Decoder) -> Tensor:
        return torch.from_numpy(np.array(self.picture(index).convert("RGB")))

    def first_classes(self, n: int) -> "MapStyleImages":
        kept = MapStyleImages.__new__(MapStyleImages)
        kept.dataset = Subset(self.dataset, np.flatnonzero(self.labels < n).tolist())
        kept.classes, kept.labels = self.classes[:n], self.labels[self.labels < n]
        return kept
