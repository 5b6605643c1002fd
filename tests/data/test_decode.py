"""Every decoder gives Pillow's pixels for what data sets hold, and refuses what Pillow refuses."""

import io
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from geexp.config.errors import ConfigError
from geexp.data.decode import DAMAGED, Decoder, decode_with_pil
from geexp.data.jpeg_header import read_jpeg_header
from tests.data.conftest import photo

SIZE = (97, 61)


def backend_or_skip(name: str):
    missing = name in ("torchcodec", "simplejpeg") and find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{name} is not installed"))


every_backend = pytest.mark.parametrize(
    "backend", [backend_or_skip(name) for name in ("torchvision", "torchcodec", "simplejpeg", "pil")]
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def content(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data), dtype=np.uint8)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(1, SIZE), exif=exif)


def turned_after_other_app1() -> bytes:
    """EXIF that does not come first: XMP is an APP1 segment as well."""
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x/>"
    jpeg = turned(6)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + jpeg[2:]


def taller_colours() -> bytes:
    """4:4:0, as cameras held upright make: Pillow cannot write it, so the header of a 4:2:2 of noise is changed."""
    jpeg = bytearray(encoded(photo(1, (64, 64)), subsampling="4:2:2"))
    frame = jpeg.find(b"\xff\xc0")
    assert jpeg[frame + 11] == 0x21
    jpeg[frame + 11] = 0x12
    return bytes(jpeg)


def flipped_in_scan() -> bytes:
    """Bytes changed as a bad disk does; none becomes a marker."""
    jpeg = bytearray(encoded(photo(1, SIZE), quality=95))
    for place in range(len(jpeg) - 500, len(jpeg) - 100, 60):
        jpeg[place] = 0x55 if jpeg[place - 1] != 0xFF and jpeg[place] != 0xFF else jpeg[place]
    return bytes(jpeg)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


palette = photo(2, SIZE).convert("P")
deep = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, SIZE[::-1], dtype=np.uint16))

READABLE = {
    "4:2:0": encoded(photo(1, SIZE), subsampling="4:2:0"),
    "4:2:2": encoded(photo(1, SIZE), subsampling="4:2:2"),
    "4:4:4": encoded(photo(1, SIZE), subsampling="4:4:4"),
    "4:4:0": taller_colours(),
    "grey": encoded(photo(1, SIZE, "L")),
    "progressive": encoded(photo(1, SIZE), progressive=True),
    "restart markers": encoded(photo(1, SIZE), restart_marker_blocks=2),
    "RGB without YCbCr": encoded(photo(1, SIZE), keep_rgb=True),
    "CMYK": encoded(photo(1, SIZE, "CMYK")),
    "progressive CMYK": encoded(photo(1, SIZE, "CMYK"), progressive=True),
    **{f"EXIF orientation {o}": turned(o) for o in (1, 3, 6, 8, 9)},
    "EXIF behind XMP": turned_after_other_app1(),
    "1x1": encoded(photo(1, (1, 1))),
    "odd": encoded(photo(1, (17, 9))),
    "one row": encoded(photo(1, (5000, 1))),
    "one column": encoded(photo(1, (1, 5000))),
    "the longest": encoded(photo(1, (65500, 1))),
    "garbage behind the end": encoded(photo(1, SIZE)) + b"garbage" * 100,
    "a second JPEG behind the end": encoded(photo(1, SIZE)) + encoded(photo(2, (8, 8))),
    "flipped bytes in the scan": flipped_in_scan(),
    "two pictures (MPO)": encoded(photo(1, SIZE), "MPO", save_all=True, append_images=[photo(2, SIZE)]),
    "PNG": encoded(photo(1, SIZE), "PNG"),
    "PNG with palette": encoded(palette, "PNG"),
    "PNG with transparent colour": encoded(palette, "PNG", transparency=3),
    "PNG with palette of transparencies": encoded(palette, "PNG", transparency=bytes(range(256))),
    "PNG with alpha": encoded(photo(1, SIZE, "RGBA"), "PNG"),
    "PNG of 16 bits": encoded(deep, "PNG"),
    "PNG of 1 bit": encoded(photo(1, SIZE, "1"), "PNG"),
    **{name: encoded(photo(1, SIZE), name) for name in ("GIF", "TIFF", "WEBP", "BMP", "PPM")},
    "moving GIF": encoded(photo(1, SIZE), "GIF", save_all=True, append_images=[photo(2, SIZE)]),
}

# What a back end leaves to Pillow among the files above that are JPEGs.
TO_PILLOW = {
    "torchvision": {"4:4:0"},
    "torchcodec": set(),
    "simplejpeg": {"CMYK", "progressive CMYK", "flipped bytes in the scan"},  # it takes no warning of libjpeg lightly
    "pil": set(),
}


@every_backend
@pytest.mark.parametrize("kind", READABLE)
def test_pixels_are_pillows(backend, kind):
    decode = Decoder(backend)
    with Image.open(io.BytesIO(READABLE[kind])) as image:
        expected = np.array(image.convert("RGB"))
    pixels = decode(content(READABLE[kind]))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == expected.shape
    assert np.array_equal(pixels.numpy(), expected)
    assert pixels.is_contiguous()
    is_jpeg = READABLE[kind].startswith(b"\xff\xd8")
    left_to_pillow = backend != "pil" and (not is_jpeg or kind in TO_PILLOW[backend])
    assert decode.take_fallbacks() == left_to_pillow
    assert decode.take_fallbacks() == 0


def huge_jpeg() -> bytes:
    """Says that it has 65,500 x 65,500 pixels, 12 GB: libjpeg would fill them from the few that are there."""
    jpeg = bytearray(READABLE["4:2:0"])
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(jpeg)


def without_height() -> bytes:
    jpeg = bytearray(READABLE["4:2:0"])
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 7] = b"\0\0"
    return bytes(jpeg)


UNREADABLE = {
    "empty": b"",
    "text": b"<html><body>404 Not Found</body></html>",
    "zeros": bytes(5000),
    "first byte": b"\xff",
    "start of image": b"\xff\xd8",
    "start and end of image": b"\xff\xd8\xff\xd9",
    "a byte too early": b"\n" + READABLE["4:2:0"],
    "huge JPEG": huge_jpeg(),
    "JPEG without a height": without_height(),
    "huge PNG": png(20_000, 20_000, chunk(b"IDAT", zlib.compress(bytes(20_000)))),
    "PNG of impossible size": png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", b"")),
    "PNG without pixels": png(8, 8),
    "PNG with damaged compression": png(8, 8, chunk(b"IDAT", zlib.compress(bytes(72))[:2] + b"\xff" * 20)),
    "PNG with a text of 80 MB": png(
        2, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))), chunk(b"IDAT", zlib.compress(bytes(6)))
    ),
    "BMP cut in its header": READABLE["BMP"][:20],
    "TIFF cut in its directory": READABLE["TIFF"][:-30],
    "DDS, PSD, ICNS and QOI of nothing": b"DDS 8BPS" + bytes(100),
}


@every_backend
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_image_is_damaged(backend, kind):
    with pytest.raises(DAMAGED) as caught:
        Decoder(backend)(content(UNREADABLE[kind]))
    assert str(caught.value)
    assert " object at 0x" not in str(caught.value)


@every_backend
@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "grey", "progressive", "CMYK", "EXIF orientation 6", "PNG", "WEBP"])
def test_truncated_anywhere_is_damaged(backend, kind):
    """Where Pillow still sees all of the image, as in a PNG without its end, so does every back end."""
    decode, whole = Decoder(backend), READABLE[kind]
    for end in [*range(0, len(whole), len(whole) // 25), len(whole) - 2, len(whole) - 1]:
        try:
            expected = decode_with_pil(content(whole[:end]))
        except DAMAGED:
            with pytest.raises(DAMAGED):
                decode(content(whole[:end]))
        else:
            assert not whole.startswith(b"\xff\xd8")
            assert torch.equal(decode(content(whole[:end])), expected)


@every_backend
@pytest.mark.parametrize("kind", ["4:2:0", "CMYK", "EXIF orientation 6", "PNG", "GIF", "TIFF", "WEBP"])
def test_random_damage_is_seen_as_pillow_sees_it(backend, kind):
    """Nothing but DAMAGED is raised, and what passes has the shape that Pillow gives it."""
    decode, random = Decoder(backend), np.random.default_rng(0)
    for _ in range(60):
        data = content(READABLE[kind])
        data[random.integers(0, min(len(data), 700), 3)] = random.integers(0, 256, 3)
        try:
            expected = decode_with_pil(data)
        except DAMAGED:
            with pytest.raises(DAMAGED):
                decode(data)
        else:
            assert decode(data).shape == expected.shape


def test_a_plugin_of_pillow_may_raise_anything(monkeypatch):
    for error in (MemoryError(), AssertionError("odd"), struct.error("short"), zlib.error("bad"), RuntimeError("AVIF")):

        def fails(*_, error=error):
            raise error

        monkeypatch.setattr(Image, "open", fails)
        with pytest.raises(DAMAGED) as caught:
            Decoder("pil")(content(b"x"))
        assert str(caught.value) in (str(error), type(error).__name__)


@every_backend
def test_threads(backend):
    names = [name for name in READABLE if name != "the longest"]
    data = {name: content(READABLE[name]) for name in names}
    alone = Decoder(backend)
    expected = {name: alone(data[name]) for name in names}
    per_round = alone.take_fallbacks()
    shared = Decoder(backend)
    work = names * 20
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda name: shared(data[name]), work))
    assert all(torch.equal(pixels, expected[name]) for name, pixels in zip(work, results, strict=True))
    assert shared.take_fallbacks() == 20 * per_round


@every_backend
def test_decoding_leaves_the_content_alone(backend):
    for data in READABLE.values():
        given = content(data)
        Decoder(backend)(given)
        assert given.tobytes() == data


@every_backend
def test_a_decoder_survives_pickling(backend):
    decode = Decoder(backend)
    decode(content(READABLE["PNG"]))
    copy = pickle.loads(pickle.dumps(decode))
    assert copy.backend == backend
    assert copy.take_fallbacks() == 0
    assert torch.equal(copy(content(READABLE["4:2:0"])), decode(content(READABLE["4:2:0"])))


@pytest.mark.parametrize("package", ["torchcodec", "simplejpeg"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setattr("geexp.data.decode.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"feed\.decode={package}: .*pip install {package}.*feed\.decode=auto"):
        Decoder(package)


def test_header():
    header = read_jpeg_header(content(READABLE["EXIF orientation 6"]))
    assert (header.width, header.height) == SIZE
    assert header.sampling == ((2, 2), (1, 1), (1, 1))
    assert len(header.app1) == 1
    assert read_jpeg_header(content(READABLE["4:4:0"])).sampling[0] == (1, 2)
    assert read_jpeg_header(content(READABLE["grey"])).sampling == ((1, 1),)
    assert len(read_jpeg_header(content(READABLE["CMYK"])).sampling) == 4
    for name in ("PNG", "GIF"):
        with pytest.raises(ValueError, match="no JPEG"):
            read_jpeg_header(content(READABLE[name]))
