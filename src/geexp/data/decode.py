"""Encoded bytes to pixels, by the fastest decoder that is at hand; Pillow is the judge of everything odd.

All of these decoders rest on libjpeg-turbo and give the same pixels for JPEG files that are in order. Whatever one of
them refuses, and what one of them is known to see differently, goes to Pillow: so PNGs named .JPEG, CMYK files and EXIF
orientation (which is ignored, as torchvision's datasets ignore it) look the same whichever decoder is chosen, and a
file is damaged when Pillow says so.
"""

import importlib
import io
import math
import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
import torchvision.io
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from geexp.config.errors import ConfigError
from geexp.data.jpeg_header import JpegHeader, read_jpeg_header

# What comes of a file that cannot be read, and of content that is no image or not all of one.
DAMAGED = (OSError, ValueError)

_MODULES = {"torchcodec": "torchcodec.decoders", "simplejpeg": "simplejpeg"}

# Pillow warns of damaged EXIF data and of the transparency that RGB drops; neither concerns us. Said once, here: to
# silence and restore around each image is not safe among threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Decoder:
    """Content of an image file (``uint8 [bytes]``) → ``uint8 [H, W, 3]``; may be called from many threads.

    Args:
        backend: ``auto`` (torchvision), ``torchvision``, ``torchcodec``, ``simplejpeg`` or ``pil``.

    Raises:
        ConfigError: if the package of the back end is not installed.
    """

    def __init__(self, backend: str = "auto") -> None:
        self.backend = "torchvision" if backend == "auto" else backend
        if self.backend in ("torchcodec", "simplejpeg"):
            if find_spec(self.backend) is None:
                raise ConfigError(
                    f"feed.decode={backend}: the package {self.backend} is not installed. Either pip install "
                    f"{self.backend}, or leave feed.decode=auto."
                )
            try:
                importlib.import_module(_MODULES[self.backend])
            except Exception as error:  # a shared library that does not load has many ways of saying so
                about = str(error).strip().splitlines()[0]
                raise ConfigError(f"feed.decode={backend}: {self.backend} cannot be loaded ({about}).") from error
        self._lock = threading.Lock()
        self._fallbacks = 0

    def __call__(self, content: np.ndarray) -> Tensor:
        """Decode; raises one of ``DAMAGED`` for content that Pillow cannot read."""
        if self.backend == "pil":
            return decode_with_pil(content)
        try:
            header = read_jpeg_header(content)
            if header.height * header.width > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError("so large that Pillow shall say whether it can be")
            return _BACKENDS[self.backend](content, header)
        except Exception:  # whatever it is, Pillow says whether the file or the decoder is to blame
            return self.fall_back(content)

    def fall_back(self, content: np.ndarray) -> Tensor:
        with self._lock:
            self._fallbacks += 1
        return decode_with_pil(content)

    def take_fallbacks(self) -> int:
        """How many images went to Pillow since this was last asked."""
        with self._lock:
            count, self._fallbacks = self._fallbacks, 0
        return count

    def __getstate__(self) -> dict[str, str]:  # for DataLoader workers that are spawned
        return {"backend": self.backend}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(state["backend"])  # type: ignore[misc]


def open_with_pil(content: np.ndarray) -> Image.Image:
    """The content as a PIL image in RGB, read to its end.

    Raises:
        ValueError: for content that is no image, or a damaged one; the message says what is wrong with it.
    """
    try:
        with Image.open(io.BytesIO(content.data)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:  # its own message names the object in memory
        what = f"{len(content)} bytes that are no image, or whose header is damaged" if len(content) else "empty file"
        raise ValueError(what) from None
    except Exception as error:  # each of Pillow's formats has its own: struct.error, RuntimeError, SyntaxError, …
        raise ValueError(str(error) or type(error).__name__) from error


def decode_with_pil(content: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(open_with_pil(content)))


def _torchvision(content: np.ndarray, header: JpegHeader) -> Tensor:
    if header.sampling[0] == (1, 2):  # 4:4:0: its libjpeg-turbo is of 2018 and rounds the colours of these otherwise
        raise ValueError("torchvision has slightly other colours for it")
    image = torchvision.io.decode_jpeg(torch.from_numpy(content), mode=torchvision.io.ImageReadMode.RGB)
    return image.permute(1, 2, 0)  # its memory is [H, W, C] already


def _torchcodec(content: np.ndarray, header: JpegHeader) -> Tensor:
    if header.app1:  # it would turn the image as EXIF says: let it find none
        content = content.copy()
        content[[place + 1 for place in header.app1]] = 0xEF  # APP1 becomes APP15
    decoders = importlib.import_module(_MODULES["torchcodec"])
    return decoders.decode_jpeg(torch.from_numpy(content), mode="RGB").permute(1, 2, 0)


def _simplejpeg(content: np.ndarray, header: JpegHeader) -> Tensor:
    if len(header.sampling) == 4:
        raise ValueError("simplejpeg has other colours for CMYK")
    simplejpeg = importlib.import_module(_MODULES["simplejpeg"])
    return torch.from_numpy(simplejpeg.decode_jpeg(content, colorspace="RGB"))


_BACKENDS: dict[str, Callable[[np.ndarray, JpegHeader], Tensor]] = {
    "torchvision": _torchvision,
    "torchcodec": _torchcodec,
    "simplejpeg": _simplejpeg,
}
