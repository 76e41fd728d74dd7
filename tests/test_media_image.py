"""Loading images: formats, modes, orientation and refusals."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avgrad.errors import MediaError
from avgrad.media import load_image
from avgrad.media.image import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def gradient(width: int = 60, height: int = 40) -> np.ndarray:
    """An image whose corners differ: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // (width - 1), 255 * y // (height - 1), 0 * x + 90], axis=-1).astype(np.uint8)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def assert_rgb(image: Image.Image, expected: np.ndarray, tolerance: float) -> None:
    assert image.mode == "RGB" and image.size == (expected.shape[1], expected.shape[0])
    difference = np.abs(np.asarray(image).astype(int) - expected.astype(int))
    assert difference.max() <= tolerance


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str, tmp_path: Path) -> None:
    pixels = gradient()
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    content = save(Image.fromarray(pixels), kind, **options)
    path = tmp_path / "image.bin"
    path.write_bytes(content)
    for source in (content, path, str(path), Image.open(path)):
        assert_rgb(load_image(source), pixels, {"JPEG": 6, "GIF": 60}.get(kind, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_arrays_and_tensors(dtype: type) -> None:
    pixels = gradient()
    array = pixels if dtype is np.uint8 else (pixels / 255).astype(dtype)
    tolerance = 1 if dtype is np.float16 else 0
    assert_rgb(load_image(array), pixels, tolerance)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for given in (tensor, tensor.contiguous(), tensor.clone().requires_grad_() if dtype is np.float32 else tensor):
        assert_rgb(load_image(given), pixels, tolerance)
    assert_rgb(load_image(tensor[0]), np.repeat(pixels[..., :1], 3, axis=2), tolerance)
    if dtype is np.float32:
        assert_rgb(load_image(tensor.bfloat16()), pixels, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(kind: str, orientation: int) -> None:
    pixels = gradient()
    stored = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.transpose(1, 0, 2), 6: np.rot90(pixels), 7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    content = save(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    for source in (content, Image.open(io.BytesIO(content))):
        assert_rgb(load_image(source), pixels, 6 if kind == "JPEG" else 0)


def test_damaged_exif_is_ignored() -> None:
    pixels = gradient()
    content = save(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert_rgb(load_image(content), pixels, 0)


def test_grey_and_16_bit() -> None:
    grey = gradient()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    assert_rgb(load_image(save(Image.fromarray(grey), "PNG")), expected, 0)
    deep = grey.astype(np.uint16) * 257
    content = save(Image.fromarray(deep), "PNG")
    assert Image.open(io.BytesIO(content)).mode.startswith("I")
    assert_rgb(load_image(content), expected, 0)


def test_16_bit_colour() -> None:
    pixels = gradient()
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels.astype(np.uint16) * 257)
    header = struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert_rgb(load_image(b"\x89PNG\r\n\x1a\n" + chunks), pixels, 0)


def test_transparency_over_white() -> None:
    pixels = np.dstack([gradient(), np.full((40, 60), 255, np.uint8)])
    pixels[:10, :, 3] = 0
    pixels[10:20, :, 3] = 51
    expected = gradient().astype(float)
    expected[:10] = 255
    expected[10:20] = 0.2 * expected[10:20] + 0.8 * 255
    rgba = Image.fromarray(pixels)
    for source in (pixels, rgba, save(rgba, "PNG"), save(rgba, "WEBP", lossless=True, exact=True)):
        assert_rgb(load_image(source), expected, 1)
    grey = load_image(save(Image.fromarray(pixels[..., [0, 3]]), "PNG"))
    assert grey.getpixel((0, 0)) == (255, 255, 255) and grey.getpixel((0, 39)) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette(kind: str) -> None:
    indices = np.zeros((20, 30), np.uint8)
    indices[:10] = 1
    image = Image.fromarray(indices).convert("P")
    image.putpalette([10, 20, 200, 240, 100, 5])
    opaque = load_image(save(image, kind))
    assert opaque.getpixel((0, 0)) == (240, 100, 5) and opaque.getpixel((0, 19)) == (10, 20, 200)
    transparent = load_image(save(image, kind, transparency=1))
    assert transparent.getpixel((0, 0)) == (255, 255, 255) and transparent.getpixel((0, 19)) == (10, 20, 200)


def test_first_frame_of_animation() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        content = save(frames[0], kind, save_all=True, append_images=frames[1:])
        assert load_image(content).getpixel((5, 5))[0] > 240


def test_cmyk() -> None:
    image = Image.fromarray(gradient()).convert("CMYK")
    content = save(image, "JPEG", quality=98)
    assert_rgb(load_image(content), np.asarray(image.convert("RGB")), 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "YCbCr", "HSV", "I", "I;16"])
def test_modes_of_pil_images(mode: str) -> None:
    image = Image.fromarray(gradient()).convert("L" if mode.startswith("I") else "RGB").convert(mode)
    assert load_image(image).mode == "RGB"


def test_arrays() -> None:
    pixels = gradient()
    for view in (pixels, pixels[::2, ::3], pixels[:, ::-1], pixels[..., ::-1]):
        assert_rgb(load_image(view), view, 0)
    assert_rgb(load_image(pixels[..., 0]), np.repeat(pixels[..., :1], 3, axis=2), 0)
    assert load_image(np.zeros((1, 1, 3), np.uint8)).size == (1, 1)


def test_result_is_a_copy() -> None:
    pixels = gradient()
    image = Image.fromarray(pixels)
    load_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (0, 0, 90)


def sound_bytes() -> bytes:
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    return b"RIFF\x24\0\0\0WAVEfmt " + form + b"data\0\0\0\0"


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-file.jpg", "no-such-file.jpg does not exist"),
        ("", "empty path"),
        ("a\0b.png", "cannot be read"),
        (os.path.dirname(__file__), "directory"),
        (os.devnull, "not a regular file"),
        (b"", "empty"),
        (b"not an image at all", "no known format"),
        (sound_bytes(), "a WAV sound"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "damaged JPEG image"),
        (b"II*\0\x08\0\0\0", "a TIFF image"),
        (b"<html><body>404</body></html>", "a web page"),
        (b"%PDF-1.7 ...", "a PDF"),
        (bomb(11_000, 10_000), f"11000 x 10000 pixels; at most {MAX_PIXELS:,}"),
        (bomb(100_000, 100_000), f"at most {MAX_PIXELS:,}"),
        (bomb(1, 50_000), "1 x 50000 pixels"),
        (None, "NoneType"),
        (3.5, "float"),
        ([[0, 1], [2, 3]], "list"),
        (np.zeros((0, 10, 3), np.uint8), "no pixels"),
        (np.zeros((10, 0, 3), np.uint8), "no pixels"),
        (np.full((10, 10, 3), 255.0), "from 255 to 255; values from 0 to 1"),
        (np.full((10, 10, 3), -0.1), "from -0.1 to -0.1"),
        (np.full((10, 10, 3), np.nan), "from nan to nan"),
        (torch.zeros(10, 10, 3), r"the given tensor has the shape \[10, 10, 3\]; \[3, H, W\]"),
        (torch.zeros(2, 3, 10, 10), "shape"),
        (torch.zeros(3, 10, 10, dtype=torch.int64), "int64"),
        (torch.full((3, 10, 10), 2.0), "from 2 to 2"),
        (np.zeros((10, 10, 3), bool), "bool"),
        (np.zeros((10, 10, 3), np.uint16), "uint16"),
        (np.zeros((3, 10, 10), np.uint8), "shape"),
        (np.zeros((1, 10, 10, 3), np.uint8), "shape"),
        (np.zeros(10, np.uint8), "shape"),
        (np.zeros((2, 201, 3), np.uint8), "100 times"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("F", (5, 5)), "floating-point"),
    ],
)
def test_refused(source: object, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert "accepted" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)
    content = save(Image.fromarray(noise), kind)
    path = tmp_path / "cut.bin"
    path.write_bytes(content[: len(content) // 2])
    for source in (path, path.read_bytes()):
        with pytest.raises(MediaError, match="accepted"):
            load_image(source)
    if kind != "WEBP":  # whose headers Pillow only reads together with the pixels
        lazy = Image.open(path)
        with pytest.raises(MediaError, match=r"cut\.bin is damaged or cut short"):
            load_image(lazy)
