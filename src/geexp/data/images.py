"""What every data set gives, whatever it is stored as: labels, names for messages, and pictures by index."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
