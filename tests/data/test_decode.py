"""Every decoder gives Pillow's pixels for what data sets hold, and refuses what Pillow refuses."""

import importlib
import io
import pickle
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image

from geexp.config.errors import ConfigError
from geexp.data import decode as decode_module
from geexp.data.decode import DAMAGED, Decoder, decode_with_pil, take_conversions
from tests.support.photos import photo

SIZE = (97, 61)
every_backend = pytest.mark.parametrize("backend", ["torchvision", "torchcodec", "pil"])
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(autouse=True)
def _installed(request):
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "torchcodec":
        pytest.importorskip("torchcodec")


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


def with_frame(jpeg: bytes, at: int, value: bytes) -> bytes:
    """Bytes of the frame header changed."""
    frame = jpeg.find(b"\xff\xc0") + at
    return jpeg[:frame] + value + jpeg[frame + len(value) :]


def taller_colours() -> bytes:
    """4:4:0, as cameras held upright make: Pillow cannot write it, so the header of a 4:2:2 of noise is changed."""
    return with_frame(encoded(photo(1, (64, 64)), subsampling="4:2:2"), 11, b"\x12")


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


def with_adobe(transform: int | None) -> bytes:
    """CMYK with another transform in Adobe's segment (2: stored as YCCK), or without the segment."""
    jpeg = encoded(photo(1, SIZE, "CMYK"))
    segment = jpeg.find(b"\xff\xee")
    end = segment + 2 + int.from_bytes(jpeg[segment + 2 : segment + 4], "big")
    return jpeg[:segment] + (b"" if transform is None else jpeg[segment : end - 1] + bytes([transform])) + jpeg[end:]


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
    "CMYK without Adobe's segment": with_adobe(None),
    "YCCK": with_adobe(2),
    "progressive CMYK": encoded(photo(1, SIZE, "CMYK"), progressive=True),
    **{f"EXIF orientation {o}": turned(o) for o in (1, 3, 6, 8, 9)},
    "EXIF behind XMP": turned_after_other_app1(),
    "1x1": encoded(photo(1, (1, 1))),
    "one row": encoded(photo(1, (5000, 1))),
    "one column": encoded(photo(1, (1, 5000))),
    "a second JPEG behind the end": encoded(photo(1, SIZE)) + encoded(photo(2, (8, 8))),
    "flipped bytes in the scan": flipped_in_scan(),
    "two pictures (MPO)": encoded(photo(1, SIZE), "MPO", save_all=True, append_images=[photo(2, SIZE)]),
    "PNG": encoded(photo(1, SIZE), "PNG"),
    "PNG with alpha, all opaque": encoded(photo(1, SIZE, "RGBA"), "PNG"),
    "PNG with a palette": encoded(photo(2, SIZE).convert("P"), "PNG"),
    "TIFF in LAB": encoded(Image.merge("LAB", photo(1, SIZE).split()), "TIFF"),
    "TIFF in YCbCr": encoded(photo(1, SIZE, "YCbCr"), "TIFF"),
    "animated GIF": encoded(photo(1, SIZE), "GIF", save_all=True, append_images=[photo(2, SIZE)]),
    "PNG of 1 bit": encoded(photo(1, SIZE, "1"), "PNG"),
    **{name: encoded(photo(1, SIZE), name) for name in ("GIF", "TIFF", "WEBP", "BMP", "PPM")},
}

# JPEGs among these that a decoder leaves to Pillow.
TO_PILLOW = {"torchvision": {"4:4:0"}, "torchcodec": set(), "pil": set()}


@every_backend
def test_pixels_are_pillows(backend):
    decode = Decoder(backend)
    for kind, data in READABLE.items():
        with Image.open(io.BytesIO(data)) as image:
            expected = np.array(image.convert("RGB"))
        given = content(data)
        pixels = decode(given)
        assert pixels.dtype == torch.uint8, kind
        assert np.array_equal(pixels.numpy(), expected), kind
        assert pixels.is_contiguous(), kind
        assert given.tobytes() == data, f"{kind}: decoding changed the content"
        left_to_pillow = backend != "pil" and (not data.startswith(b"\xff\xd8") or kind in TO_PILLOW[backend])
        assert (decode.take_fallbacks(), decode.take_fallbacks()) == (left_to_pillow, 0), kind


RAMP = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint16)
SCALED = np.rint(RAMP / 257)
FLOATS = (RAMP / 65535).astype(np.float32)
COLOURS, ALPHA = np.array(photo(1, SIZE)), np.rint(RAMP / 257).astype(np.uint8)
ON_WHITE = np.rint(COLOURS * (ALPHA[..., None] / 255) + 255 * (1 - ALPHA[..., None] / 255))


def tiff(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels), "TIFF")


def tiff_of_12_bits() -> bytes:
    """One row of 0, 1365, 2730 and 4095, which Pillow reads but does not write."""
    row = bytes.fromhex("000555aaafff")
    entries = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(row))]
    directory = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in entries)
    start = 8 + len(row)
    return b"II*\0" + struct.pack("<I", start) + row + struct.pack("<H", len(entries)) + directory + bytes(4)


def with_nan() -> bytes:
    pixels = FLOATS.copy()
    pixels[0] = np.nan
    return tiff(pixels)


# What Pillow's convert("RGB") spoils, and the pixels that it should have, grey or RGB.
SPOILT = {
    "16-bit PNG": (encoded(Image.fromarray(RAMP), "PNG"), SCALED),
    "16-bit TIFF": (tiff(RAMP), SCALED),
    "big-endian 16-bit TIFF": (tiff(RAMP.astype(">u2")), SCALED),
    "16-bit JPEG 2000": (encoded(Image.fromarray(RAMP), "JPEG2000"), SCALED),
    "16-bit PGM": (encoded(Image.fromarray(RAMP.astype(np.int32)), "PPM"), SCALED),
    "12-bit TIFF": (tiff_of_12_bits(), np.array([[0, 85, 170, 255]])),
    "dark 16-bit PNG": (encoded(Image.fromarray(RAMP // 256), "PNG"), np.rint(RAMP // 256 / 257)),
    "32-bit integers up to 65535": (tiff(RAMP.astype(np.int32)), SCALED),
    "32-bit integers up to 255": (tiff((RAMP // 257).astype(np.int32)), RAMP // 257),
    "large 32-bit integers": (tiff(RAMP.astype(np.int32) * 30_000 + 1_000_000), SCALED),
    "floats from 0 to 1": (tiff(FLOATS), SCALED),
    "floats up to 255": (tiff(FLOATS * 255), SCALED),
    "floats from -3 to 2": (tiff(FLOATS * 5 - 3), SCALED),
    "a constant float": (tiff(np.full(SIZE, 1000, dtype=np.float32)), np.zeros(SIZE)),
    "floats with NaN": (with_nan(), np.where(np.arange(SIZE[1])[:, None] == 0, 0, SCALED)),
    "PNG with alpha": (encoded(Image.fromarray(np.dstack([COLOURS, ALPHA])), "PNG"), ON_WHITE),
    "PNG of a shape that only alpha shows": (
        encoded(Image.merge("LA", (Image.new("L", SIZE), Image.fromarray(ALPHA))), "PNG"),
        255 - ALPHA.astype(int),
    ),
    "GIF with a transparent colour": (
        encoded(Image.fromarray(COLOURS[..., 0] // 2), "GIF", transparency=10),
        np.where(COLOURS[..., 0] // 2 == 10, 255, COLOURS[..., 0] // 2),
    ),
    "PNG with a transparent palette": (
        encoded(Image.fromarray(COLOURS[..., 0]).convert("P"), "PNG", transparency=bytes(256)),
        np.full(SIZE[::-1], 255),
    ),
}


@every_backend
@pytest.mark.parametrize("kind", SPOILT)
def test_what_conversion_to_rgb_spoils(kind, backend):
    data, expected = SPOILT[kind]
    take_conversions()
    pixels = Decoder(backend)(content(data)).numpy().astype(int)
    wanted = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    assert pixels.shape == wanted.shape
    assert np.abs(pixels - wanted).max() <= (0 if expected.ndim == 2 and "float" not in kind else 1)
    assert len(take_conversions()) == (not kind.endswith("up to 255"))
    assert not take_conversions()


UNREADABLE = {
    "empty": b"",
    "text": b"<html><body>404 Not Found</body></html>",
    "start of image": b"\xff\xd8",
    "a byte too early": b"\n" + READABLE["4:2:0"],
    # 12 GB of pixels: libjpeg would fill them from the few that are there.
    "a JPEG of 65,500 x 65,500": with_frame(READABLE["4:2:0"], 5, struct.pack(">HH", 65500, 65500)),
    "a JPEG without a height": with_frame(READABLE["4:2:0"], 5, b"\0\0"),
    "a PNG of 20,000 x 20,000": png(20_000, 20_000, chunk(b"IDAT", zlib.compress(bytes(20_000)))),
    "a PNG with a text of 80 MB": png(
        2, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))), chunk(b"IDAT", zlib.compress(bytes(6)))
    ),
    "a TIFF cut in its directory": READABLE["TIFF"][:-30],
}


@every_backend
def test_what_is_no_image_is_damaged(backend):
    for kind, data in UNREADABLE.items():
        with pytest.raises(DAMAGED) as caught:
            Decoder(backend)(content(data))
        assert str(caught.value), kind
        assert " object at 0x" not in str(caught.value), kind


@every_backend
@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "EXIF orientation 6", "PNG"])
def test_truncated_or_changed_it_is_damaged_where_pillow_finds_it_to_be(backend, kind):
    """Nothing but DAMAGED is raised, and what passes has the shape that Pillow gives it."""
    decode, whole, random = Decoder(backend), READABLE[kind], np.random.default_rng(0)
    cases = [content(whole[:end]) for end in [*range(0, len(whole), len(whole) // 10), len(whole) - 1]]
    for _ in range(30):
        cases.append(content(whole))
        cases[-1][random.integers(0, min(len(whole), 700), 3)] = random.integers(0, 256, 3)
    damaged = 0
    for data in cases:
        try:
            expected = decode_with_pil(data)
        except DAMAGED:
            damaged += 1
            with pytest.raises(DAMAGED):
                decode(data)
        else:
            assert decode(data).shape == expected.shape
    assert damaged > 5


def test_a_plugin_of_pillow_may_raise_anything(monkeypatch):
    for error in (MemoryError(), AssertionError("odd"), struct.error("short"), zlib.error("bad"), RuntimeError("AVIF")):

        def fails(*_, error=error):
            raise error

        monkeypatch.setattr(Image, "open", fails)
        with pytest.raises(DAMAGED) as caught:
            Decoder("pil")(content(b"x"))
        assert str(caught.value) in (str(error), type(error).__name__)


def test_a_bug_in_a_decoder_is_not_hidden_by_pillow(monkeypatch):
    def fails(*_):
        raise TypeError("a bug")

    monkeypatch.setitem(decode_module._BACKENDS, "torchvision", fails)
    with pytest.raises(TypeError, match="a bug"):
        Decoder("torchvision")(content(READABLE["4:2:0"]))


@every_backend
def test_threads(backend):
    data = {name: content(READABLE[name]) for name in READABLE}
    alone, shared = Decoder(backend), Decoder(backend)
    expected = {name: alone(data[name]) for name in data}
    work = list(data) * 10
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda name: shared(data[name]), work))
    assert all(torch.equal(pixels, expected[name]) for name, pixels in zip(work, results, strict=True))
    assert shared.take_fallbacks() == 10 * alone.take_fallbacks()


@every_backend
def test_a_decoder_survives_pickling(backend):
    decode = Decoder(backend)
    decode(content(READABLE["PNG"]))
    copy = pickle.loads(pickle.dumps(decode))
    assert (copy.backend, copy.take_fallbacks()) == (backend, 0)
    assert torch.equal(copy(content(READABLE["4:2:0"])), decode(content(READABLE["4:2:0"])))


def test_auto_takes_the_first_decoder_that_can_be_loaded(monkeypatch):
    modules = {}

    def import_module(name):
        try:
            return modules[name]
        except KeyError:
            raise ModuleNotFoundError(name) from None

    monkeypatch.setattr(importlib, "import_module", import_module)
    for version, without, old, with_it in (
        ("0.28.1+cpu", "torchvision", "torchvision", "torchvision"),
        ("0.29.0", "torchvision", "torchvision", "torchcodec"),  # deprecates its decoders
        ("1.0.0", "pil", "pil", "torchcodec"),  # as torchvision announces
    ):
        monkeypatch.setattr(torchvision, "__version__", version)
        if without == "pil":
            monkeypatch.delattr(torchvision.io, "decode_jpeg")
        for decoders, expected in (
            (None, without),
            (SimpleNamespace(), old),  # decodes videos only
            (SimpleNamespace(decode_jpeg=print), with_it),
        ):
            modules = {} if decoders is None else {"torchcodec.decoders": decoders}
            assert Decoder("auto").backend == expected, (version, decoders)
    with pytest.raises(ConfigError, match=r"feed\.decode=torchvision: .*auto"):
        Decoder("torchvision")


def test_auto_uses_nothing_deprecated():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Decoder("auto")(content(READABLE["4:2:0"]))


def test_a_decoder_that_is_not_there_is_named(monkeypatch):
    for error in (ModuleNotFoundError("No module named 'torchcodec'"), OSError("libavutil.so: cannot open")):

        def fails(name, error=error):
            raise error

        monkeypatch.setattr(importlib, "import_module", fails)
        with pytest.raises(ConfigError, match=rf"feed\.decode=torchcodec: .*\({error}\).*pip install torchcodec"):
            Decoder("torchcodec")
