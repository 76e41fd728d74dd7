"""Images: files, bytes, PIL images, arrays and tensors become upright 8-bit RGB images."""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps

from avgrad.errors import MediaError
from avgrad.media.source import open_source

MAX_PIXELS = 100_000_000
# Models scale the shorter side to a fixed length: a line of pixels would become an image of billions.
MAX_ASPECT_RATIO = 100
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_IMAGES = ("JPEG image", "PNG image", "WebP image", "GIF image", "BMP image")
_ACCEPTED = "a JPEG, PNG, WebP, GIF or BMP image, its bytes, a PIL image, an array [H, W, 3] or a tensor [3, H, W]"


def load_image(source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor) -> Image.Image:
    """Load an image, upright and in 8-bit RGB.

    The EXIF orientation is applied, transparent pixels are laid over white (as on a web page), 16-bit
    samples keep their upper 8 bits, of an animation the first frame is taken, color profiles are ignored.

    Args:
        source: a path or the bytes of a JPEG, PNG, WebP, GIF or BMP file; a PIL image; an array [H, W, 3] (RGB),
            [H, W, 4] (RGBA) or [H, W] (gray); or a tensor [3, H, W], [4, H, W] or [H, W]. Arrays and tensors are uint8
            (0 to 255) or floating-point (0 to 1, rounded to 8 bits).

    Returns:
        A new image in mode "RGB".

    Raises:
        MediaError: the source is none of these, is damaged, has no pixels or more than `MAX_PIXELS`, or is
            more than `MAX_ASPECT_RATIO` times as long as it is wide.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, "the given array", "[H, W, 3], [H, W, 4] or [H, W]")
    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if isinstance(source, Image.Image):
        name = os.path.basename(str(getattr(source, "filename", ""))) or "the given PIL image"
        return _convert(source, name)
    file = open_source(source, None, _ACCEPTED)
    with warnings.catch_warnings(), file.open() as stream:
        # Pillow warns of large images at a limit of its own; ours is checked below, before any decoding.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(stream, formats=FORMATS)
        except Image.DecompressionBombError as error:
            message = f"{file.name} has too many pixels; at most {MAX_PIXELS:,} are accepted."
            raise MediaError(message) from error
        except Exception as error:  # Pillow's parsers let errors of many types through on damaged files
            description = file.signature.description if file.signature else "in no known format"
            if description.endswith(_IMAGES):
                description = f"a damaged {description.split(' ', 1)[1]}"
            raise MediaError(f"{file.name} is {description}; {_ACCEPTED} is accepted.") from error
        with image:
            return _convert(image, file.name)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise MediaError(f"{name} has no pixels ({width} x {height}); at least 1 x 1 is accepted.")
    if width * height > MAX_PIXELS:
        raise MediaError(f"{name} has {width} x {height} pixels; at most {MAX_PIXELS:,} are accepted.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise MediaError(
            f"{name} has {width} x {height} pixels; "
            f"a longer side of at most {MAX_ASPECT_RATIO} times the shorter one is accepted."
        )


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    name, shapes = "the given tensor", "[3, H, W], [4, H, W] or [H, W]"
    if tensor.ndim == 3 and tensor.shape[0] not in (3, 4):
        raise MediaError(f"{name} has the shape {list(tensor.shape)}; {shapes} is accepted.")
    values = tensor.detach().cpu()
    array = (values.float() if values.is_floating_point() else values).numpy()
    return _from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, name, shapes)


def _from_array(array: np.ndarray, name: str, shapes: str) -> Image.Image:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise MediaError(
            f"{name} is of type {array.dtype}; uint8 from 0 to 255 or floating-point values from 0 to 1 are accepted."
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise MediaError(f"{name} has the shape {list(array.shape)}; {shapes} is accepted.")
    _check_size(array.shape[1], array.shape[0], name)
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also where there is a NaN
            raise MediaError(
                f"{name} has floating-point values from {low:.4g} to {high:.4g}; values from 0 to 1 are accepted."
            )
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _convert(image: Image.Image, name: str) -> Image.Image:
    _check_size(image.width, image.height, name)
    try:
        image.load()
        upright = _upright(image)
        return _to_rgb(upright)
    except MediaError:
        raise
    except Exception as error:  # as above: OSError, SyntaxError, struct.error, zlib.error, ...
        raise MediaError(f"{name} is damaged or cut short; a complete image is accepted.") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block is no reason to refuse an image whose pixels are whole
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit gray at 255.
        samples = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        image = Image.fromarray(samples.astype(np.uint8))
    if image.mode == "F":
        raise MediaError("the image has floating-point pixels; 8-bit or 16-bit pixels are accepted.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
