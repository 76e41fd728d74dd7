"""Drawing for the demo and the page: a palette, outlines of masks, waveforms and log-mel spectrograms."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avgrad.encoders.audio import SAMPLE_RATE, clip_times
from avgrad.media import Audio, open_audio

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (160, 160, 160),
)
"""The colours of Okabe and Ito, which colour-blind people can tell apart; grey in place of black."""
DARK: Colour = (20, 20, 20)
"""What outlines are edged with, so that they show on bright pixels too."""

WIDTH, WAVE_HEIGHT, MEL_HEIGHT, BAR_HEIGHT = 640, 64, 128, 10
"""Sizes of `draw_sound`'s image in pixels; it has one bar per clip window."""
MAX_SECONDS = 300.0
"""Longer sounds are not decoded by `draw_sound`: only their clip windows are drawn."""
_WAVE_COLOUR = (88, 150, 220, 255)
_CLIP_COLOURS = tuple((*PALETTE[number], 255) for number in (0, 2, 3))

_MEL_BINS, _MIN_WINDOW, _RANGE_DB = 64, 1024, 70.0
_BLOCK_SECONDS = 20.0


def outline(mask: NDArray[np.bool_], width: int = 1) -> NDArray[np.bool_]:
    """The pixels up to `width` inside and outside the edge of a mask `[H, W]`: bool `[H, W]`."""
    from scipy.ndimage import maximum_filter, minimum_filter

    side = 2 * width + 1
    return np.asarray(maximum_filter(mask, side, mode="nearest") != minimum_filter(mask, side, mode="nearest"))


def draw_outline(image: Image.Image, mask: NDArray[np.bool_], colour: Colour, thickness: int = 1) -> Image.Image:
    """A copy of an RGB image with the outline of a mask `[H, W]`, edged dark.

    Args:
        image: of the mask's size.
        mask: what is outlined.
        colour: of the outline.
        thickness: in pixels, to either side of the mask's edge.
    """
    pixels = np.array(image)
    pixels[outline(mask, thickness + 1)] = DARK
    pixels[outline(mask, thickness)] = colour
    return Image.fromarray(pixels)


def log_mel_image(waveform: NDArray[np.float32], rate: int, size: tuple[int, int]) -> Image.Image:
    """The log-mel spectrogram of a waveform, time to the right and frequency upwards, in RGB.

    It shows 64 bands of Slaney's mel scale, up to the models' 8 kHz, over a range of 70 dB in matplotlib's magma.

    Args:
        waveform: `[samples]`.
        rate: its sample rate in Hz.
        size: width and height of the image in pixels.
    """
    import torch
    from matplotlib import colormaps
    from torchaudio.functional import melscale_fbanks

    # about 40 ms: short enough for chirps, and no mel band is narrower than a frequency bin
    window = max(_MIN_WINDOW, 2 ** round(math.log2(rate / 24)))
    # windows lie no closer than the image can show, however long the sound is
    hop = max(rate // 100, len(waveform) // (2 * size[0]))
    samples = torch.from_numpy(np.pad(waveform, (0, max(0, window - len(waveform)))))
    spectrum = torch.stft(samples, window, hop, window=torch.hann_window(window), return_complex=True).abs().square()
    top = min(rate, SAMPLE_RATE) / 2
    banks = melscale_fbanks(window // 2 + 1, 0.0, top, _MEL_BINS, rate, norm="slaney", mel_scale="slaney")
    decibels = 10 * np.log10(np.maximum((banks.T @ spectrum).numpy(), 1e-10))
    shade = np.clip(1 + (decibels - decibels.max()) / _RANGE_DB, 0, 1)[::-1]
    colours = np.rint(colormaps["magma"](shade)[..., :3] * 255).astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR)


def log_mel_of_file(sound: str | os.PathLike[str], size: tuple[int, int]) -> Image.Image:
    """The log-mel spectrogram of a sound file's first channel, see `log_mel_image`.

    Raises:
        MediaError: it cannot be read as a sound.
    """
    with open_audio(sound) as audio:
        return log_mel_image(_first_channel(audio), audio.sample_rate, size)


@dataclass(frozen=True)
class SoundImage:
    """A sound as the page shows it.

    Attributes:
        png: the image: waveform, log-mel spectrogram, one bar per clip window.
        duration: in seconds.
        clips: start and end in seconds of each clip window that the model encodes.
    """

    png: bytes
    duration: float
    clips: tuple[tuple[float, float], ...]


def draw_sound(
    content: bytes, name: str, times: Callable[[float], list[tuple[float, float]]] = clip_times
) -> SoundImage:
    """Opens a sound and draws it; what is in no clip window is dimmed.

    Args:
        content: a sound file's bytes.
        name: what error messages call it.
        times: the model's clip windows, of a duration in seconds; by default ImageBind's.

    Raises:
        MediaError: it cannot be read as a sound, or is silent.
    """
    with open_audio(content, name=name) as audio:
        duration = audio.duration
        clips = tuple((start, min(end, duration)) for start, end in times(duration))
        image = Image.new("RGBA", (WIDTH, WAVE_HEIGHT + MEL_HEIGHT + len(clips) * BAR_HEIGHT))
        if duration <= MAX_SECONDS:
            waveform, rate = _first_channel(audio), audio.sample_rate
            image.paste(_wave(waveform), (0, 0))
            image.paste(log_mel_image(waveform, rate, (WIDTH, MEL_HEIGHT)), (0, WAVE_HEIGHT))
    _mark_clips(image, clips, duration)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return SoundImage(stream.getvalue(), duration, clips)


def _first_channel(audio: Audio) -> NDArray[np.float32]:
    """The first channel, `[samples]`, decoded block by block so that the others take no memory."""
    block = round(_BLOCK_SECONDS * audio.sample_rate)
    if audio.num_frames <= block:
        return audio.read_clips([(0, audio.num_frames)])[0][0].numpy()
    bounds = range(0, audio.num_frames, block)
    return np.concatenate([audio.read(start, min(start + block, audio.num_frames))[0].numpy() for start in bounds])


def _wave(waveform: NDArray[np.float32]) -> Image.Image:
    image = Image.new("RGBA", (WIDTH, WAVE_HEIGHT))
    draw, middle = ImageDraw.Draw(image), WAVE_HEIGHT / 2
    edges = np.linspace(0, len(waveform), WIDTH + 1).astype(int)
    highest = max(float(np.abs(waveform).max()), 1e-9)
    for column, (start, stop) in enumerate(zip(edges, np.maximum(edges[1:], edges[:-1] + 1), strict=False)):
        part = waveform[start:stop] / highest
        top, bottom = middle - 0.94 * middle * part.max(), middle - 0.94 * middle * part.min()
        draw.line((column, top, column, bottom), _WAVE_COLOUR)
    return image


def _mark_clips(image: Image.Image, clips: tuple[tuple[float, float], ...], duration: float) -> None:
    """Draws a bar for each clip window, and dims what is in none."""
    encoded = np.zeros(WIDTH, dtype=bool)
    draw, below = ImageDraw.Draw(image), WAVE_HEIGHT + MEL_HEIGHT
    for number, (start, end) in enumerate(clips):
        left = round(start / duration * WIDTH)
        right = max(round(end / duration * WIDTH), left + 2)
        encoded[left:right] = True
        top = below + number * BAR_HEIGHT
        draw.rounded_rectangle((left, top + 3, right - 1, top + BAR_HEIGHT - 1), 3, fill=_CLIP_COLOURS[number])
    pixels = np.array(image)
    pixels[:WAVE_HEIGHT, ~encoded, 3] //= 3
    pixels[WAVE_HEIGHT:below, ~encoded, :3] //= 3
    image.paste(Image.fromarray(pixels))
