"""The header of a JPEG file, read in microseconds: enough to know what a decoder would make of the file."""

from dataclasses import dataclass

import numpy as np

_APP1, _SOS = 0xE1, 0xDA
# Start of frame: all of 0xC0 … 0xCF but the three that mean other things.
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class JpegHeader:
    """``sampling``: horizontal and vertical factor of each colour; ``app1``: places of the segments that hold EXIF."""

    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]
    app1: tuple[int, ...]


def read_jpeg_header(content: np.ndarray) -> JpegHeader:
    """What stands before the first scan of ``content``, ``uint8 [bytes]``.

    Raises:
        ValueError: if it is no JPEG, or one whose header is not in order.
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
            raise ValueError("the header is not in order")
        height, width = (data[frame + i] << 8 | data[frame + i + 1] for i in (5, 7))
        factors = [data[frame + 11 + 3 * i] for i in range(data[frame + 9])]
    except IndexError:
        raise ValueError("the header is not whole") from None
    return JpegHeader(height, width, tuple((f >> 4, f & 15) for f in factors), tuple(app1))
