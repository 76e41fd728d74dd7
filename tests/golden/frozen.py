"""The frozen generator: weights, inputs and samples of the golden values, drawn again instead of being stored.

Every tensor is a function of its file's name, its key and its shape alone. This needs numpy only, and no function whose
last bit differs between processors: `RandomState.random_sample` never changes, and the rest is IEEE arithmetic.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

SAMPLES = ("dog", "car", "bird")
# sample rate in Hz, channels, duration in seconds
_RECORDINGS = {"dog": (48_000, 2, 2.61), "car": (16_000, 1, 5.0), "bird": (44_100, 2, 5.0)}
# width, height in pixels
_IMAGES = {"dog": (320, 424), "car": (640, 360), "bird": (251, 333)}


def draw(name: str, shape: Sequence[int]) -> np.ndarray:
    """Uniform numbers of mean 0 and variance 1, float64, from the seed `crc32(name)`.

    Args:
        name: for example "imagebind_small/modality_heads.vision.0.bias".
        shape: of the result.
    """
    random = np.random.RandomState(zlib.crc32(name.encode())).random_sample(tuple(shape))
    return (2 * random - 1) * math.sqrt(3)


def weight(model: str, key: str, shape: Sequence[int]) -> np.ndarray:
    """One weight of a small model, float32; u stands for the drawn numbers.

    ================================================== =========================
    key                                                value
    ================================================== =========================
    ends in "mask"                                     -inf above the diagonal, else 0
    a scalar (logit scales)                            2.7 + 0.1 u
    a vector that ends in "weight" (LayerNorms)        1 + 0.1 u
    any other vector whose key ends in "bias"          0.1 u
    class tokens, positions, latents, `bias_k`, `bias_v` 0.2 u
    "token_embedding.weight"                           0.1 u
    any other matrix or convolution                    u / sqrt(product of shape[1:])
    ================================================== =========================
    """
    if key.endswith("mask"):
        return np.triu(np.full(shape, -np.inf, dtype=np.float32), 1)
    u = draw(f"{model}/{key}", shape)
    if not shape:
        value = 2.7 + 0.1 * u
    elif len(shape) == 1 and key.endswith("weight"):
        value = 1 + 0.1 * u
    elif len(shape) == 1 and key.endswith("bias"):
        value = 0.1 * u
    elif not key.endswith(("weight", "proj", "projection")):
        value = 0.2 * u
    elif key.endswith("token_embedding.weight"):
        value = 0.1 * u
    else:
        value = u / math.sqrt(math.prod(shape[1:]))
    return np.asarray(value, dtype=np.float32)


def weights(model: str, layout: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The state dict of a small model.

    Args:
        model: "imagebind_small", for example.
        layout: shape of each key.
    """
    return {key: weight(model, key, shape) for key, shape in layout.items()}


def inputs(model: str, layout: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """A small model's inputs, float32, of variance 1.

    Args:
        model: "imagebind_small", for example.
        layout: shape of each key.
    """
    return {key: draw(f"{model}/{key}", shape).astype(np.float32) for key, shape in layout.items()}


def waveform(name: str) -> tuple[np.ndarray, int]:
    """A recording: a rising tone over noise whose loudness goes up and down.

    Args:
        name: one of `SAMPLES`.

    Returns:
        int16 `[samples, channels]`, and the sample rate in Hz.
    """
    sample_rate, channels, duration = _RECORDINGS[name]
    time = np.arange(round(duration * sample_rate)) / sample_rate
    tone = _triangle(200 * time + 600 * time * time)  # from 200 Hz, 1200 Hz higher every second
    noise = draw(f"waveform/{name}", (len(time), channels)) * (0.02 + 0.1 * abs(_triangle(0.7 * time)))[:, None]
    loudness = np.linspace(0.5, 0.3, channels)
    return np.round(32767 * (0.5 * tone[:, None] * loudness + noise)).astype(np.int16), sample_rate


def _triangle(phase: np.ndarray) -> np.ndarray:
    """A triangle wave in [-1, 1] of period 1."""
    return 4 * abs(phase % 1 - 0.5) - 1


def image(name: str) -> np.ndarray:
    """An image: squares of random colors, and noise.

    Args:
        name: one of `SAMPLES`.

    Returns:
        uint8 `[height, width, 3]`.
    """
    width, height = _IMAGES[name]
    squares = draw(f"squares/{name}", (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)
    noise = draw(f"noise/{name}", (height, width, 3))
    return np.round(127.5 + 60 * squares[:height, :width] + 10 * noise).astype(np.uint8)


def write_samples(folder: Path) -> None:
    """Write `NAME_audio.wav` (16 bits) and `NAME_image.png` for each of `SAMPLES`."""
    import soundfile
    from PIL import Image

    for name in SAMPLES:
        soundfile.write(folder / f"{name}_audio.wav", *waveform(name), subtype="PCM_16")
        Image.fromarray(image(name)).save(folder / f"{name}_image.png")
