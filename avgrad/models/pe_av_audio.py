"""Sounds as PE-AV takes them: 48 kHz mono waveforms, of windows spread evenly over the sound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avgrad.encoders.resampling import read_resampled, resampled_length
from avgrad.media import Audio

WINDOW_SECONDS = 10.0
MAX_WINDOWS = 3


@dataclass(frozen=True)
class Waveforms:
    """How PE-AV takes sounds; see `avgrad.models.model.AudioPreprocess`.

    The model takes sounds of any length. One of at most 10 seconds is taken as a whole, as by the library: that is the
    length of a clip in AudioSet, AudioCaps and VGGSound, on which the model is evaluated (arXiv 2512.19687). Of a
    longer one, two or three windows of 10 seconds are taken, evenly spread from its beginning to its end, and their
    embeddings are averaged, so that memory does not grow with the length.

    Attributes:
        extractor: transformers' PeAudioFeatureExtractor, which continues a waveform by its reflection to whole frames
            of the audio codec (40 ms).
        clip_seconds: length of the sound around a moment of a video: as with ImageBind, so that the prompt is what is
            heard there.
    """

    extractor: Any
    clip_seconds: float = 2.0

    @property
    def sample_rate(self) -> int:
        return int(self.extractor.sampling_rate)

    def windows(self, num_samples: int) -> list[tuple[int, int]]:
        """First sample and the sample after the last one of each window of a sound, at `sample_rate`."""
        length = round(WINDOW_SECONDS * self.sample_rate)
        if num_samples <= length:
            return [(0, num_samples)]
        count = min(math.ceil(num_samples / length), MAX_WINDOWS)
        starts = [index * (num_samples - length) // (count - 1) for index in range(count)]
        return [(start, start + length) for start in starts]

    def clip_times(self, duration: float) -> list[tuple[float, float]]:
        """Begin and end of each window in seconds, of a sound of so many seconds."""
        windows = self.windows(max(round(duration * self.sample_rate), 1))
        return [(first / self.sample_rate, stop / self.sample_rate) for first, stop in windows]

    def __call__(self, audio: Audio, span: tuple[float, float] | None = None) -> Tensor:
        """The windows' waveforms, float32 `[windows, samples]`; only the windows are decoded."""
        frames = (0, audio.num_frames) if span is None else audio.frames_of(*span)
        pieces = self.windows(resampled_length(audio, frames, self.sample_rate))
        found = read_resampled(audio, frames, pieces, self.sample_rate)
        return torch.cat([self.clip(piece) for piece in found])

    def clip(self, waveform: Tensor) -> Tensor:
        """One window, `[1, samples]`, of a waveform `[channels, samples]` of any length at `sample_rate`: the mean of
        its channels."""
        inputs = self.extractor(waveform.mean(0).numpy(), sampling_rate=self.sample_rate, return_tensors="pt")
        values: Tensor = inputs["input_values"]
        return values[0]
