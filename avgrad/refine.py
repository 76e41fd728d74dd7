"""Refinement: heatmaps that follow the edges of the image.

A heatmap has the resolution of the patch grid. A refiner takes the image and a heatmap, and gives a heatmap whose
contours lie on the image's edges. `@refiner` registers one by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from avgrad.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[np.float32]
Refiner = Callable[..., Array]
Function = TypeVar("Function", bound=Refiner)

DEFAULT = "guided"
PATCH = 16  # pixels of a patch at the size at which refiners work, where the image has so many
SAM2 = "facebook/sam2.1-hiera-small"
_REFINERS: dict[str, Refiner] = {}


def refiner(name: str) -> Callable[[Function], Function]:
    """Registers a function as a refiner.

    It takes the image `[h, w, 3]` in [0, 1], a heatmap `[h, w]` in [0, 1] and the side of a patch in pixels, all at
    the size at which it works, and its own options, which are numbers or texts and have defaults.
    """

    def register(function: Function) -> Function:
        _REFINERS[name] = function
        return function

    return register


def list_refiners() -> list[str]:
    """The names of the ways to refine a heatmap."""
    return list(_REFINERS)


def check_refinement(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a refiner, with its defaults.

    Raises:
        InputError: there is no such refiner, or it has no such option.
    """
    if method not in _REFINERS:
        raise InputError(f"there is no refinement {method!r}; expected one of {', '.join(_REFINERS)}")
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(_REFINERS[method]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for name, value in options.items():
        if name not in known:
            raise InputError(f"{method} has no option {name!r}; expected one of {', '.join(known) or 'none'}")
        if isinstance(known[name], str) != isinstance(value, str) or not isinstance(value, str | int | float):
            kind = "a text" if isinstance(known[name], str) else "a number"
            raise InputError(f"{name}={value!r} of {method} is not accepted; expected {kind}")
        if not isinstance(value, str) and not 0 < value < float("inf"):
            raise InputError(f"{name}={value!r} of {method} is out of range; expected a positive number")
    return {**known, **options}


def refine(image: Image.Image, heatmap: Array, grid: tuple[int, int], method: str, options: Mapping[str, Any]) -> Array:
    """A heatmap refined to the edges of its image.

    Large images are worked on at a size at which a patch has 16 pixels.

    Args:
        image: RGB, H x W pixels.
        heatmap: float32 `[H, W]` in [0, 1].
        grid: rows and columns of the patch grid that the heatmap was upsampled from.
        method: one of `list_refiners()`.
        options: of `check_refinement`.

    Returns:
        float32 `[H, W]`, min-max normalized.

    Raises:
        InputError: the refiner needs a package or weights that are not here.
    """
    if heatmap.max() <= heatmap.min():  # nothing is located
        return heatmap
    height, width = heatmap.shape
    side = max(height / grid[0], width / grid[1])
    scale = min(1.0, PATCH / side)
    small = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = _pixels(image, small)
    found = _REFINERS[method](pixels, _resized(heatmap, small), side * scale, **options)
    if small != (height, width):
        found = _upsampled_along(image, pixels, found)
    return _min_max(found).astype(np.float32) if found.max() > found.min() else heatmap


# ------------------------------------------------------------------ guided filter


@refiner("guided")
def guided(image: Array, heatmap: Array, patch: float, *, radius: float = 1.5, epsilon: float = 1e-4) -> Array:
    """The guided filter (He et al., ECCV 2010): within each window the heatmap is linear in the image's colors.

    Args:
        image, heatmap, patch: see `refiner`.
        radius: of the windows, in patches.
        epsilon: variance of colors in [0, 1] below which a window is smoothed.
    """
    weights, offset = _linear_model(image, heatmap, max(1, round(radius * patch)), epsilon)
    return np.clip((weights * image).sum(-1) + offset, 0, 1)


def _linear_model(image: Array, values: Array, radius: int, epsilon: float) -> tuple[Array, Array]:
    """The coefficients of each pixel, `[h, w, 3]` and `[h, w]`: the means of those of all windows that it is in."""
    mean_image, mean = _box(image, radius), _box(values, radius)
    # covariances are small differences of means, so they are taken of centered values in float64 sums
    covariance = _box(image * values[..., None], radius) - mean_image * mean[..., None]
    variance = np.empty((*values.shape, 3, 3))
    for i in range(3):
        for j in range(i, 3):
            variance[..., i, j] = variance[..., j, i] = (
                _box(image[..., i] * image[..., j], radius) - mean_image[..., i] * mean_image[..., j]
            )
    variance += epsilon * np.eye(3)
    weights = np.linalg.solve(variance, covariance.astype(np.float64)[..., None])[..., 0]
    offset = mean - (weights * mean_image).sum(-1)
    return _box(weights, radius).astype(np.float32), _box(offset, radius).astype(np.float32)


def _box(values: NDArray[Any], radius: int) -> NDArray[np.float64]:
    """Means over windows of 2 radius + 1 pixels, float64."""
    from scipy.ndimage import uniform_filter

    size = (2 * radius + 1, 2 * radius + 1, *(0 for _ in values.shape[2:]))
    found: NDArray[np.float64] = uniform_filter(values.astype(np.float64), size, mode="reflect")
    return found


def _upsampled_along(image: Image.Image, pixels: Array, values: Array) -> Array:
    """Values `[h, w]` of a smaller image, upsampled so that their edges lie on those of the image `[H, W]`.

    The fast guided filter (He and Sun, 2015): the coefficients are upsampled, and the image is at its own size.
    """
    weights, offset = _linear_model(pixels, values, 2, 1e-4)
    size = image.height, image.width
    result = _resized(offset, size)
    for channel, own in enumerate(image.split()):
        result += _resized(np.ascontiguousarray(weights[..., channel]), size) * (
            np.asarray(own, dtype=np.float32) / 255
        )
    return np.clip(result, 0, 1)


# ------------------------------------------------------------------ by other libraries


@refiner("grabcut")
def grabcut(
    image: Array,
    heatmap: Array,
    patch: float,
    *,
    foreground: float = 0.8,
    unsure: float = 0.5,
    background: float = 0.15,
    rounds: int = 3,
) -> Array:
    """GrabCut (Rother et al., SIGGRAPH 2004) by OpenCV, started from the guided filter's heatmap.

    The heatmap is halved, and raised by one half inside the mask that was cut out.

    Args:
        image, heatmap, patch: see `refiner`.
        foreground: where the heatmap reaches this, the object is sure.
        unsure: where it reaches this, the object is likely.
        background: below this, the background is sure.
        rounds: of fitting colors and cutting.
    """
    cv2 = _import("cv2", "opencv-python-headless")
    start = _min_max(guided(image, heatmap, patch))
    labels = np.full(start.shape, cv2.GC_BGD, dtype=np.uint8)
    for threshold, label in ((background, cv2.GC_PR_BGD), (unsure, cv2.GC_PR_FGD), (foreground, cv2.GC_FGD)):
        labels[start >= threshold] = label
    if len(np.unique(labels & 1)) < 2:  # no background, or no foreground
        return start
    cv2.setRNGSeed(0)  # it fits mixtures of colors from random starts
    cv2.grabCut(_bytes(image), labels, None, np.zeros((1, 65)), np.zeros((1, 65)), int(rounds), cv2.GC_INIT_WITH_MASK)
    return start / 2 + np.float32(0.5) * (labels & 1)


@refiner("random_walker")
def random_walker(
    image: Array,
    heatmap: Array,
    patch: float,
    *,
    foreground: float = 0.6,
    background: float = 0.4,
    beta: float = 100.0,
) -> Array:
    """Random walks (Grady, PAMI 2006) by scikit-image, from the guided filter's heatmap.

    The result is the mean of that heatmap and the probability that a walk reaches the object first.

    Args:
        image, heatmap, patch: see `refiner`.
        foreground: where the heatmap reaches this, the object is sure.
        background: below this, the background is sure.
        beta: how much an edge hinders a walk.
    """
    segmentation = _import("skimage.segmentation", "scikit-image")
    start = _min_max(guided(image, heatmap, patch))
    labels = np.where(start >= foreground, 1, np.where(start <= background, 2, 0))
    if len(np.unique(labels)) < 3 or image.min() == image.max():  # nothing is unsure, or there are no edges
        return start
    found = segmentation.random_walker(
        image, labels, beta=beta, mode="cg_j", tol=1e-3, channel_axis=-1, return_full_prob=True
    )
    probability: Array = np.asarray(found[0], dtype=np.float32)
    mean: Array = (start + probability) / np.float32(2)
    return mean


@refiner("sam2")
def sam2(image: Array, heatmap: Array, patch: float, *, weights: str = SAM2) -> Array:
    """SAM 2.1 (Ravi et al., ICLR 2025) by transformers, prompted with the heatmap's peak and the box of its hot part.

    The result is the probability of SAM's mask. Its weights (Apache-2.0) are not downloaded: they must be in the
    cache of huggingface_hub, or in a folder.

    Args:
        image, heatmap, patch: see `refiner`.
        weights: name or folder of a SAM 2 or SAM 2.1 checkpoint.
    """
    from PIL import Image

    torch = _import("torch", "torch")
    processor, model = _sam2(weights)
    row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    rows, columns = np.nonzero(heatmap >= 0.5)
    box = [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]
    inputs = processor(
        images=Image.fromarray(_bytes(image)),
        input_points=[[[[float(column), float(row)]]]],
        input_labels=[[[1]]],
        input_boxes=[[box]],
        return_tensors="pt",
    )
    with torch.inference_mode():
        outputs = model(**inputs, multimask_output=False)
    logits = torch.nn.functional.interpolate(
        outputs.pred_masks[0].float(), size=heatmap.shape, mode="bilinear", align_corners=False
    )
    found: Array = logits[0, 0].sigmoid().numpy()
    return found


@cache
def _sam2(weights: str) -> tuple[Any, Any]:
    transformers = _import("transformers", "transformers")
    try:
        processor = transformers.Sam2Processor.from_pretrained(weights, local_files_only=True)
        model = transformers.Sam2Model.from_pretrained(weights, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"weights={weights!r} of sam2 cannot be loaded ({reason}); "
            f"`hf download {SAM2}` puts SAM 2.1 (Apache-2.0) into the cache"
        ) from None
    return processor, model.eval()


# ------------------------------------------------------------------ helpers


def _import(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise InputError(
            f"this refinement needs {package}, which is not installed: `pip install 'avgrad[refine]'`; "
            f"{DEFAULT!r} needs nothing more"
        ) from None


def _pixels(image: Image.Image, size: tuple[int, int]) -> Array:
    """The image at `(rows, columns)`, float32 `[h, w, 3]` in [0, 1]."""
    from PIL import Image as PILImage

    if (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), PILImage.Resampling.BOX, reducing_gap=2)
    pixels: Array = np.asarray(image, dtype=np.float32) / np.float32(255)
    return pixels


def _resized(values: Array, size: tuple[int, int]) -> Array:
    """A map `[h, w]`, bilinearly resized to `(rows, columns)`, antialiased where it becomes smaller."""
    from PIL import Image as PILImage

    if values.shape == size:
        return values
    resized = PILImage.fromarray(values.astype(np.float32)).resize((size[1], size[0]), PILImage.Resampling.BILINEAR)
    return np.array(resized)


def _min_max(values: Array) -> Array:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else values


def _bytes(image: Array) -> NDArray[np.uint8]:
    return np.rint(image * 255).astype(np.uint8)
