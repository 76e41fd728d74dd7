"""Sounds as ImageBind takes them: log-mel spectrograms of clips spread evenly over the sound."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F

from avgrad.encoders.resampling import read_resampled, resampled_length
from avgrad.media import Audio

SAMPLE_RATE = 16_000
NUM_CLIPS = 3
CLIP_SECONDS = 2
NUM_MEL_BINS = 128
NUM_FRAMES = 204
FRAME_LENGTH_MS = 25.0
_WINDOW_SAMPLES = 400
FRAME_SHIFT_MS = 10.0
MEAN, STANDARD_DEVIATION = -4.268, 9.138


@dataclass(frozen=True)
class LogMelClips:
    """How ImageBind takes sounds; see `avgrad.models.model.AudioPreprocess`."""

    sample_rate: int = SAMPLE_RATE
    clip_seconds: float = CLIP_SECONDS

    def __call__(self, audio: Audio, span: tuple[float, float] | None = None) -> torch.Tensor:
        """Log-mel clips `[3, 1, 128, 204]`; see `log_mel_clips`."""
        return log_mel_clips(audio, span)

    def clip_times(self, duration: float) -> list[tuple[float, float]]:
        """Begin and end of each clip in seconds; see the function `clip_times`."""
        return clip_times(duration)

    def clip(self, waveform: torch.Tensor) -> torch.Tensor:
        """The log-mel spectrogram of one clip, `[1, 1, 128, 204]`, of a waveform `[channels, samples]` at 16 kHz."""
        return log_mel(waveform)[None]


def clip_times(duration: float) -> list[tuple[float, float]]:
    """Where the clips of a sound lie.

    Args:
        duration: of the sound resampled to 16 kHz, in seconds.

    Returns:
        Begin and end of each clip in seconds, i * (duration - 2) / 3 and 2 seconds later; a sound shorter
        than a clip has all of them at its beginning.
    """
    return [(float(start), float(start + CLIP_SECONDS)) for start in _clip_starts(duration)]


def _clip_starts(duration: float) -> list[Fraction]:
    # Fractions of the rounded duration, as in pytorchvideo: the sample at which a clip begins depends on it.
    step = Fraction(max(duration - CLIP_SECONDS, 0)) / NUM_CLIPS
    return [index * step for index in range(NUM_CLIPS)]


def log_mel(waveform: torch.Tensor) -> torch.Tensor:
    """Log-mel spectrogram of one clip, normalized for the audio tower.

    Source: ImageBind's `waveform2melspec` (Kaldi filter banks, 25 ms Hanning windows every 10 ms).

    Args:
        waveform: float32 [channels, samples] at 16 kHz, in [-1, 1]. As in the original the first channel is
            the one that counts; less than 25 ms is filled up with zeros.

    Returns:
        float32 [1, 128, 204]: frames beyond the clip are filled with zeros before normalization, those
        beyond 204 are cut off.
    """
    from torchaudio.compliance.kaldi import fbank

    centered = _audible_first(waveform - waveform.mean())[:1]
    features = fbank(
        F.pad(centered, (0, max(_WINDOW_SAMPLES - centered.shape[1], 0))),
        htk_compat=True,
        sample_frequency=SAMPLE_RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=NUM_MEL_BINS,
        dither=0.0,
        frame_length=FRAME_LENGTH_MS,
        frame_shift=FRAME_SHIFT_MS,
    ).T[:, :NUM_FRAMES]
    padded = F.pad(features, (0, NUM_FRAMES - features.shape[1]))
    return ((padded - MEAN) / STANDARD_DEVIATION).unsqueeze(0)


def _audible_first(waveform: torch.Tensor) -> torch.Tensor:
    """Put the loudest channel first if the first one is silent, which is all that the original uses."""
    spread = waveform.amax(1) - waveform.amin(1)
    return waveform.roll(-int(spread.argmax()), 0) if spread[0] == 0 else waveform


def log_mel_clips(audio: Audio, span: tuple[float, float] | None = None) -> torch.Tensor:
    """Log-mel spectrograms of the clips of a sound; only the clips are decoded.

    The result is that of resampling the whole sound to 16 kHz and cutting the clips out of it.

    Args:
        audio: an open sound of any sample rate.
        span: begin and end in seconds of the only part to use, as if it were the whole sound (the time of one
            spoken word).

    Returns:
        float32 [3, 1, 128, 204].

    Raises:
        MediaError: the span does not lie within the sound or is shorter than 25 ms, or the sound cannot be
            decoded at its clips, is not finite there or is silent.
    """
    frames = (0, audio.num_frames) if span is None else audio.frames_of(*span)
    num_samples = resampled_length(audio, frames, SAMPLE_RATE)
    bounds = []
    for start in _clip_starts(num_samples / SAMPLE_RATE):
        first = int(start * SAMPLE_RATE)
        bounds.append((first, min(first + CLIP_SECONDS * SAMPLE_RATE, num_samples)))
    distinct = list(dict.fromkeys(bounds))
    clips = [_audible_first(clip) for clip in read_resampled(audio, frames, distinct, SAMPLE_RATE)]
    _carry_means(clips, distinct)
    spectrograms = {bound: log_mel(clip) for bound, clip in zip(distinct, clips, strict=True)}
    return torch.stack([spectrograms[bound] for bound in bounds])


def _carry_means(clips: list[torch.Tensor], bounds: list[tuple[int, int]]) -> None:
    """Subtract from each clip, where it overlaps earlier ones, the means of those.

    The original removes a clip's mean in place, and its clips are views of one waveform. The step that this
    leaves at the edge of the overlap shows in one frame.
    """
    for index, (clip, (_, stop)) in enumerate(zip(clips, bounds, strict=True)):
        mean = clip.mean()
        for later, (start, _) in zip(clips[index + 1 :], bounds[index + 1 :], strict=True):
            later[:, : max(stop - start, 0)] -= mean
