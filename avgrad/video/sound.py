"""The sound around a frame: its window, whether it is silent, and what a model takes of it."""

from __future__ import annotations

import math

from torch import Tensor

from avgrad.media.video import Video
from avgrad.media.video_sound import SoundReader
from avgrad.models.model import AudioPreprocess

SILENCE = -60.0  # level in dB of full scale below which a window is silent


def centered_window(time: float, seconds: float, duration: float) -> tuple[float, float]:
    """The part of a sound around a time: `seconds` long, and moved so that it lies within the sound.

    Args:
        time: in seconds.
        seconds: length of the window; a shorter sound is taken whole.
        duration: of the sound, in seconds.

    >>> centered_window(3.0, 2.0, 10.0), centered_window(0.25, 2.0, 10.0), centered_window(1.0, 2.0, 1.5)
    ((2.0, 4.0), (0.0, 2.0), (0.0, 1.5))
    """
    begin = min(max(time - seconds / 2, 0.0), max(duration - seconds, 0.0))
    return begin, min(begin + seconds, duration)


def level(waveform: Tensor) -> float:
    """The level of the loudest channel of `[channels, samples]` in dB of full scale: root mean square, without offset.

    >>> import torch
    >>> round(level(torch.tensor([[0.1, -0.1] * 100])), 3)
    -20.0
    """
    centered = waveform - waveform.mean(-1, keepdim=True)
    power = float(centered.square().mean(-1).max())
    return 10 * math.log10(power) if power > 0 else -math.inf


class SoundWindows:
    """The windows of a video's own sound, in the order of their times.

    Args:
        video: the video.
        preprocess: of the model; its clip's length is the window's.
        track: number of the sound track.
        silence: level in dB below which a window is silent.
        start: in seconds; the first time asked for.

    Raises:
        MediaError: there is no such track.
    """

    def __init__(
        self, video: Video, preprocess: AudioPreprocess, track: int = 0, silence: float = SILENCE, start: float = 0.0
    ) -> None:
        self._preprocess, self._silence, self._duration = preprocess, silence, video.duration
        first = centered_window(start, preprocess.clip_seconds, video.duration)[0]
        self._reader = SoundReader(video, preprocess.sample_rate, track, first)
        self._bounds = (-1, -1)
        self._window: Tensor | None = None

    @property
    def note(self) -> str:
        """Why the sound ended before its end; empty where it did not."""
        return self._reader.note

    def at(self, time: float) -> Tensor | None:
        """The window around a time, `[channels, samples]`; None where it is silent. Times never fall.

        Windows at the beginning and at the end of a video are the same tensor.
        """
        begin, end = centered_window(time, self._preprocess.clip_seconds, self._duration)
        rate = self._preprocess.sample_rate
        bounds = round(begin * rate), round(begin * rate) + round((end - begin) * rate)
        if bounds != self._bounds:
            window = self._reader.read(*bounds)
            self._bounds = bounds
            self._window = None if level(window) < self._silence else window
        return self._window

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()
