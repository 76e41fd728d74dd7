"""What a sound looks like: waveform and log-mel spectrogram, and on them the clips that the model hears."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avgrad.encoders.audio import SAMPLE_RATE, clip_times
from avgrad.media import Audio, open_audio

WIDTH, WAVE, MEL, BAR = 640, 64, 128, 10
MAX_SECONDS = 300.0  # of a longer sound only the clips are marked, for drawing it means decoding it
_WINDOW, _MEL_BINS, _RANGE_DB = 1024, 64, 70.0
_BLOCK_SECONDS = 20.0
WAVE_COLOUR = (88, 150, 220, 255)
CLIP_COLOURS = ((230, 159, 0, 255), (0, 158, 115, 255), (204, 121, 167, 255))


@dataclass(frozen=True)
class Spectrogram:
    """A sound as it is shown.

    Attributes:
        png: the image: waveform above, spectrogram below (time to the right, frequency upwards, as far as the
            model hears), a bar for each clip.
        duration: in seconds.
        clips: begin and end in seconds of each clip that the model hears.
    """

    png: bytes
    duration: float
    clips: tuple[tuple[float, float], ...]


def draw_sound(content: bytes, name: str) -> Spectrogram:
    """Opens a sound and draws it.

    Args:
        content: a sound file's bytes.
        name: how messages call it.

    Raises:
        MediaError: it is not a sound, or is damaged, or silent.
    """
    with open_audio(content, name=name) as audio:
        duration = audio.duration
        clips = tuple((begin, min(end, duration)) for begin, end in clip_times(duration))
        image = Image.new("RGBA", (WIDTH, WAVE + MEL + len(clips) * BAR))
        if duration <= MAX_SECONDS:
            waveform = _first_channel(audio)
            image.paste(_wave(waveform), (0, 0))
            image.paste(_spectrogram(waveform, audio.sample_rate), (0, WAVE))
    _mark(image, clips, duration)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return Spectrogram(stream.getvalue(), duration, clips)


def _first_channel(audio: Audio) -> NDArray[np.float32]:
    """The channel that counts, [samples], decoded block by block so that the others need no memory."""
    block = round(_BLOCK_SECONDS * audio.sample_rate)
    if audio.num_frames <= block:
        return audio.read_clips([(0, audio.num_frames)])[0][0].numpy()
    bounds = range(0, audio.num_frames, block)
    return np.concatenate([audio.read(start, min(start + block, audio.num_frames))[0].numpy() for start in bounds])


def _wave(waveform: NDArray[np.float32]) -> Image.Image:
    image = Image.new("RGBA", (WIDTH, WAVE))
    draw, middle = ImageDraw.Draw(image), WAVE / 2
    edges = np.linspace(0, len(waveform), WIDTH + 1).astype(int)
    highest = max(float(np.abs(waveform).max()), 1e-9)
    for column, (start, stop) in enumerate(zip(edges, np.maximum(edges[1:], edges[:-1] + 1), strict=False)):
        part = waveform[start:stop] / highest
        draw.line(
            (column, middle - 0.94 * middle * part.max(), column, middle - 0.94 * middle * part.min()), WAVE_COLOUR
        )
    return image


def _spectrogram(waveform: NDArray[np.float32], rate: int) -> Image.Image:
    import torch
    from librosa.filters import mel  # librosa.feature compiles for many seconds when it is first imported
    from matplotlib import colormaps

    # windows lie no closer than the image shows, however long the sound is
    hop = max(rate // 100, len(waveform) // (2 * WIDTH))
    samples = torch.from_numpy(np.pad(waveform, (0, max(0, _WINDOW - len(waveform)))))
    spectrum = torch.stft(samples, _WINDOW, hop, window=torch.hann_window(_WINDOW), return_complex=True).abs().square()
    power = mel(sr=rate, n_fft=_WINDOW, n_mels=_MEL_BINS, fmax=min(rate, SAMPLE_RATE) / 2) @ spectrum.numpy()
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    shade = np.clip(1 + (decibels - decibels.max()) / _RANGE_DB, 0, 1)[::-1]
    colours = np.rint(colormaps["magma"](shade)[..., :3] * 255).astype(np.uint8)
    return Image.fromarray(colours).resize((WIDTH, MEL), Image.Resampling.BILINEAR)


def _mark(image: Image.Image, clips: tuple[tuple[float, float], ...], duration: float) -> None:
    """A bar for each clip, and what no clip holds dimmed."""
    heard = np.zeros(WIDTH, dtype=bool)
    draw = ImageDraw.Draw(image)
    for number, (begin, end) in enumerate(clips):
        left, right = round(begin / duration * WIDTH), max(round(end / duration * WIDTH), 1)
        right = max(right, left + 2)
        heard[left:right] = True
        top = WAVE + MEL + number * BAR
        draw.rounded_rectangle((left, top + 3, right - 1, top + BAR - 1), 3, fill=CLIP_COLOURS[number])
    pixels = np.array(image)
    pixels[:WAVE, ~heard, 3] //= 3
    pixels[WAVE : WAVE + MEL, ~heard, :3] //= 3
    image.paste(Image.fromarray(pixels))
