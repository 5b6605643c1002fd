"""Encoded bytes to pixels by the fastest decoder available; anything unusual is left to Pillow.

All decoders use libjpeg-turbo and give the same pixels for sound JPEG files. Files that one of them refuses, or is
known to decode differently, fall back to Pillow. So PNGs named .JPEG, CMYK files and EXIF orientation (ignored, as
torchvision's datasets ignore it) look the same with every decoder, and a file is damaged if Pillow cannot read it.
Pillow's own conversion to RGB spoils some images: see ``to_eight_bits``.
"""

import importlib
import io
import math
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.io
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.torch_version import TorchVersion

from geexp.config.errors import ConfigError

# Errors of a file that cannot be read, and of content that is no image or only part of one.
DAMAGED = (OSError, ValueError)
# What the values of 32-bit images usually go up to, by Pillow's mode.
_USUAL_MAXIMA = {"I": (255, 65535), "F": (1, 255)}
_BITS_PER_SAMPLE = 258  # a tag of TIFF
# How decoders refuse a file: torchvision and torchcodec with the former, read_jpeg_header with the latter.
_REFUSED = (RuntimeError, ValueError)

_APP1, _SOS = 0xE1, 0xDA
# Start of frame: all of 0xC0 … 0xCF but the three that mean other things.
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

# Pillow warns of damaged EXIF data, which are not used, and of transparency, which to_eight_bits handles. Set once,
# because catch_warnings around each image is not thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Decoder:
    """Content of an image file (``uint8 [bytes]``) → ``uint8 [H, W, 3]``; may be called from many threads.

    Args:
        backend: ``torchvision``, ``torchcodec``, ``pil``, or ``auto``: the first of these that can be loaded, with
            ``torchcodec`` first where torchvision has deprecated its decoders (0.29).

    Raises:
        ConfigError: if the decoder is not installed or cannot be loaded.
    """

    def __init__(self, backend: str = "auto") -> None:
        self.backend = _first_available() if backend == "auto" else backend
        if self.backend == "torchvision" and not _torchvision_decodes():
            raise ConfigError(f"feed.decode={backend}: this torchvision has no decoders any more. Use auto.")
        if self.backend == "torchcodec":
            try:
                _load_torchcodec()
            except _NOT_LOADED as error:
                about = str(error).strip().splitlines()[0]
                raise ConfigError(
                    f"feed.decode={backend}: torchcodec cannot be loaded ({about}). Either pip install torchcodec, or "
                    "choose another feed.decode."
                ) from error
        self._lock = threading.Lock()
        self._fallbacks = 0

    def __call__(self, content: np.ndarray) -> Tensor:
        """Decode; raises one of ``DAMAGED`` for content that Pillow cannot read."""
        if self.backend == "pil":
            return decode_with_pil(content)
        try:
            header = read_jpeg_header(content)
            if header.height * header.width > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError("larger than Pillow's limit, so Pillow decides")
            return _BACKENDS[self.backend](content, header)
        except _REFUSED:
            return self.fall_back(content)

    def fall_back(self, content: np.ndarray) -> Tensor:
        with self._lock:
            self._fallbacks += 1
        return decode_with_pil(content)

    def take_fallbacks(self) -> int:
        """How many images fell back to Pillow since the last call."""
        with self._lock:
            count, self._fallbacks = self._fallbacks, 0
        return count

    def __reduce__(self) -> tuple:  # for DataLoader workers that are spawned
        return type(self), (self.backend,)


def _torchvision_decodes() -> bool:
    return hasattr(torchvision.io, "decode_jpeg")  # deprecated from 0.29 on


# torchcodec is not installed, one of its shared libraries does not load, or it is too old to decode images.
_NOT_LOADED = (ImportError, OSError, RuntimeError, AttributeError)


def _load_torchcodec() -> Callable[..., Tensor]:
    return importlib.import_module("torchcodec.decoders").decode_jpeg


def _first_available() -> str:
    is_deprecated = TorchVersion(torchvision.__version__) >= "0.29"
    if _torchvision_decodes() and not is_deprecated:
        return "torchvision"
    with suppress(*_NOT_LOADED):
        _load_torchcodec()
        return "torchcodec"
    return "torchvision" if _torchvision_decodes() else "pil"


_conversions: set[str] = set()  # in this process, not taken yet


def take_conversions() -> frozenset[str]:
    """What ``to_eight_bits`` has changed in this process since the last call, as sentences for the log."""
    taken = frozenset(_conversions)
    _conversions.difference_update(taken)
    return taken


def to_rgb(image: Image.Image) -> Image.Image:
    return to_eight_bits(image).convert("RGB")


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Images that ``convert("RGB")`` would spoil, in mode L or RGB; others as they are.

    Pillow clips grey levels above 255 to white, and replaces transparency by the colour hidden below it. Here 16-bit
    grey is scaled by its range. So is 32-bit grey if its values are within a usual range: 0 … 1 (floats), 255 or 65535
    (integers); others are scaled from the minimum to the maximum of the image. Transparency is shown on white.
    """
    image.load()
    if image.mode in _USUAL_MAXIMA or image.mode.startswith("I;16"):
        return _scaled(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            _conversions.add("images with transparency are shown on white")
            return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image


def _scaled(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
        if getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,):
            high = 4095.0
        _conversions.add(f"16-bit grey images: 0-{high:.0f} is scaled to 0-255")
    else:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        usual = [top for top in _USUAL_MAXIMA[image.mode] if low >= 0 and high <= top]
        if usual:
            low, high = 0.0, usual[0]
        if high != 255:
            what = f"0-{high:.0f}" if usual else "the range from minimum to maximum of each image"
            _conversions.add(f"32-bit grey images: {what} is scaled to 0-255")
    levels = (values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.rint(np.nan_to_num(levels.clip(0, 255))).astype(np.uint8))


def open_with_pil(content: np.ndarray) -> Image.Image:
    """The content as a PIL image in RGB, read to its end.

    Raises:
        ValueError: for content that is no image, or a damaged one, with the reason.
    """
    try:
        with Image.open(io.BytesIO(content.data)) as image:
            return to_rgb(image)
    except UnidentifiedImageError:  # its own message names the object in memory
        what = f"{len(content)} bytes that are no image, or whose header is damaged" if len(content) else "empty file"
        raise ValueError(what) from None
    except Exception as error:  # each of Pillow's formats has its own: struct.error, RuntimeError, SyntaxError, …
        raise ValueError(str(error) or type(error).__name__) from error


def decode_with_pil(content: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(open_with_pil(content)))


@dataclass(frozen=True)
class JpegHeader:
    """``sampling``: horizontal and vertical factor of each colour; ``app1``: places of the segments that hold EXIF."""

    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]
    app1: tuple[int, ...]


def read_jpeg_header(content: np.ndarray) -> JpegHeader:
    """The segments before the first scan of ``content``, ``uint8 [bytes]``; takes microseconds.

    Raises:
        ValueError: if it is no JPEG, or its header is damaged.
    """
    data, at, app1 = content.data, 2, []
    frame = None
    if bytes(data[:2]) != b"\xff\xd8":
        raise ValueError("no JPEG")
    try:
        while data[at] == 0xFF and data[at + 1] != _SOS:
            if data[at + 1] in _SOF:
                frame = at
            elif data[at + 1] == _APP1:
                app1.append(at)
            at += 2 + (data[at + 2] << 8 | data[at + 3])
        if data[at] != 0xFF or frame is None:
            raise ValueError("the header is damaged")
        height, width = (data[frame + i] << 8 | data[frame + i + 1] for i in (5, 7))
        factors = [data[frame + 11 + 3 * i] for i in range(data[frame + 9])]
    except IndexError:
        raise ValueError("the header is truncated") from None
    return JpegHeader(height, width, tuple((f >> 4, f & 15) for f in factors), tuple(app1))


def _torchvision(content: np.ndarray, header: JpegHeader) -> Tensor:
    if header.sampling[:1] == ((1, 2),):  # 4:4:0: its libjpeg-turbo is of 2018 and rounds these colours differently
        raise ValueError("torchvision decodes it to slightly different colours")
    image = torchvision.io.decode_jpeg(torch.from_numpy(content), mode=torchvision.io.ImageReadMode.RGB)
    return image.permute(1, 2, 0)  # its memory is [H, W, C] already


def _torchcodec(content: np.ndarray, header: JpegHeader) -> Tensor:
    if header.app1:  # it would rotate the image as EXIF says: let it find none
        content = content.copy()
        content[[place + 1 for place in header.app1]] = 0xEF  # APP1 becomes APP15
    return _load_torchcodec()(torch.from_numpy(content), mode="RGB").permute(1, 2, 0)


_BACKENDS: dict[str, Callable[[np.ndarray, JpegHeader], Tensor]] = {
    "torchvision": _torchvision,
    "torchcodec": _torchcodec,
}
