"""Images: files, bytes, PIL images and arrays become upright 8-bit RGB images."""

from __future__ import annotations

import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from avgrad.errors import MediaError
from avgrad.media.source import open_source

MAX_PIXELS = 100_000_000
# Models scale the shorter side to a fixed length: a line of pixels would become an image of billions.
MAX_ASPECT_RATIO = 100
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_IMAGES = ("JPEG image", "PNG image", "WebP image", "GIF image", "BMP image")
_ACCEPTED = "a JPEG, PNG, WebP, GIF or BMP image, its bytes, a PIL image or a uint8 array [h, w, 3]"


def load_image(source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray) -> Image.Image:
    """Load an image, upright and in 8-bit RGB.

    The EXIF orientation is applied, transparent pixels are laid over white (as on a web page), 16-bit
    samples keep their upper 8 bits, of an animation the first frame is taken, colour profiles are ignored.

    Args:
        source: a path or the bytes of a JPEG, PNG, WebP, GIF or BMP file; a PIL image; or a uint8 array of
            shape [height, width, 3] (RGB), [height, width, 4] (RGBA) or [height, width] (grey).

    Returns:
        A new image in mode "RGB".

    Raises:
        MediaError: the source is none of these, is damaged, has no pixels or more than `MAX_PIXELS`, or is
            more than `MAX_ASPECT_RATIO` times as long as it is wide.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
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


def _from_array(array: np.ndarray) -> Image.Image:
    name = "the given array"
    if array.dtype != np.uint8:
        raise MediaError(f"{name} is of type {array.dtype}; uint8 with values from 0 to 255 is accepted.")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise MediaError(
            f"{name} has the shape {list(array.shape)}; "
            "[height, width, 3], [height, width, 4] or [height, width] is accepted."
        )
    _check_size(array.shape[1], array.shape[0], name)
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
        # Pillow would clip 16-bit grey at 255.
        samples = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        image = Image.fromarray(samples.astype(np.uint8))
    if image.mode == "F":
        raise MediaError("the image has floating-point pixels; 8-bit or 16-bit pixels are accepted.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
