"""ImageBind's audio preprocessing: reference values, clip positions, resampling of clips, spans."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torchaudio
from golden.files import Golden

from avgrad.encoders.audio import SAMPLE_RATE, clip_times, log_mel, log_mel_clips
from avgrad.encoders.resampling import _block, _ratio, _resample
from avgrad.errors import MediaError
from avgrad.media import Audio, open_audio

RECORDINGS = ("dog", "car", "bird")


def noise(seconds: float, sample_rate: int, channels: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(channels, round(seconds * sample_rate), generator=generator)


def original(waveform: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """ImageBind's loader, step by step, over the whole waveform."""
    waveform = torchaudio.functional.resample(waveform, sample_rate, SAMPLE_RATE).clone()
    spectrograms = []
    for index in range(3):
        start = Fraction(max(waveform.shape[1] / SAMPLE_RATE - 2, 0)) / 3 * index
        clip = waveform[:, int(start * SAMPLE_RATE) : int((start + 2) * SAMPLE_RATE)]
        clip -= clip.mean()
        features = torchaudio.compliance.kaldi.fbank(
            clip, htk_compat=True, sample_frequency=SAMPLE_RATE, use_energy=False, window_type="hanning",
            num_mel_bins=128, dither=0.0, frame_length=25, frame_shift=10,
        ).T  # fmt: skip
        features = torch.nn.functional.pad(features, (0, 204 - features.shape[1]))
        spectrograms.append((features[None] + 4.268) / 9.138)
    return torch.stack(spectrograms)


def assert_original(actual: torch.Tensor, waveform: torch.Tensor, sample_rate: int) -> None:
    # The waveforms are equal but for the rounding of their means, which shows in the faintest bands.
    torch.testing.assert_close(actual, original(waveform, sample_rate), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", RECORDINGS)
def test_reference_spectrograms(name: str, golden: Golden) -> None:
    expected = golden.values("imagebind_media")[0][f"{name}_audio"]
    with open_audio(golden.samples / f"{name}_audio.wav") as audio:
        actual = log_mel_clips(audio)
    assert actual.shape == (3, 1, 128, 204) and actual.dtype == torch.float32
    # The rounding errors of a float32 FFT depend on the processor and are about the same in every band: less than one
    # float32 epsilon of the amplitude of the frame's loudest band (a fifth of that between the two processors tried).
    # In bands far fainter than the loudest one the logarithm amplifies them, since d log(a^2) = 2 da / a. Everything
    # else agrees to 2e-5.
    log_energy = 9.138 * expected.double() - 4.268
    loudest = log_energy.amax(dim=-2, keepdim=True)
    rounding = 2**-23 * ((loudest - log_energy) / 2).exp()
    assert ((actual - expected).abs() <= 2e-5 + 2 * rounding / 9.138).all()


@pytest.mark.parametrize("name", RECORDINGS)
def test_reference_clip_times(name: str, golden: Golden) -> None:
    expected = golden.values("imagebind_media")[1]["meta"][f"{name}_clip_timepoints"]
    with open_audio(golden.samples / f"{name}_audio.wav") as audio:
        num_samples = -(-audio.num_frames * SAMPLE_RATE // audio.sample_rate)
    assert clip_times(num_samples / SAMPLE_RATE) == [tuple(clip) for clip in expected]


def test_reference_as_array_and_bytes(golden: Golden) -> None:
    path = golden.samples / "dog_audio.wav"
    with open_audio(path) as audio:
        expected = log_mel_clips(audio)
        waveform = audio.read(0, audio.num_frames)
        sample_rate = audio.sample_rate
    for source in ((waveform, sample_rate), (waveform.numpy(), sample_rate), path.read_bytes()):
        with open_audio(source) as audio:
            assert torch.equal(log_mel_clips(audio), expected)


def test_clip_times() -> None:
    assert clip_times(5.0) == [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]
    assert clip_times(2.0) == clip_times(0.3) == [(0.0, 2.0)] * 3
    assert clip_times(32.0) == [(0.0, 2.0), (10.0, 12.0), (20.0, 22.0)]


RATES = (4000, 8000, 11025, 16000, 22050, 32000, 37800, 44100, 48000, 96000, 192000, 384000)


@pytest.mark.parametrize("seconds", [0.025, 0.3, 1.9999, 2.0, 2.01, 3.7, 9.1])
@pytest.mark.parametrize("rate", RATES)
def test_equals_whole_file(rate: int, seconds: float) -> None:
    waveform = noise(seconds, rate, seed=rate)
    with open_audio((waveform, rate)) as audio:
        actual = log_mel_clips(audio)
    assert_original(actual, waveform, rate)


@pytest.mark.parametrize("rate", RATES)
def test_clip_equals_slice_of_resampled_whole(rate: int) -> None:
    waveform = noise(6, rate, seed=rate)
    whole = torchaudio.functional.resample(waveform, rate, SAMPLE_RATE)
    for start, stop in ((0, 32000), (1, 32001), (21333, 53333), (42667, 74667), (64000, 96000)):
        first, last, offset = _block((start, stop), rate, SAMPLE_RATE)
        clip = _resample(waveform[:, first:last], _ratio(rate, SAMPLE_RATE))[:, start - offset : stop - offset]
        torch.testing.assert_close(clip, whole[:, start:stop], rtol=0, atol=1e-6)


def test_constant_offset_like_the_original() -> None:
    waveform = noise(3, 44100) + torch.tensor([[0.05], [-0.2]])
    with open_audio((waveform, 44100)) as audio:
        assert_original(log_mel_clips(audio), waveform, 44100)


@pytest.mark.parametrize("rate", [44101, 47999, 22255, 383_999, 5003])
def test_rates_without_common_divisor(rate: int) -> None:
    """The whole-file filter would take gigabytes; a tone must come out at its pitch, in every clip."""
    time = torch.arange(round(8 * rate), dtype=torch.float64) / rate
    tone = (0.3 * torch.sin(2 * torch.pi * 1000 * time)).float()[None]
    reference = (0.3 * torch.sin(2 * torch.pi * 1000 * torch.arange(8 * SAMPLE_RATE) / SAMPLE_RATE))[None]
    with open_audio((tone, rate)) as audio, open_audio((reference, SAMPLE_RATE)) as exact:
        actual, expected = log_mel_clips(audio), log_mel_clips(exact)
    audible = expected > 0  # the bands around the tone; beyond them there is the resampling noise
    assert audible[:, :, :, :198].any(dim=2).all()
    assert (actual - expected)[audible].abs().max() < 0.01


def test_short_sound_is_read_and_computed_once() -> None:
    class Counting(Audio):
        reads = 0

        def read(self, start: int, stop: int) -> torch.Tensor:
            self.reads += 1
            return super().read(start, stop)

    opened = open_audio((noise(1.2, 44100), 44100))
    counting = Counting(opened._reader, "counted")  # type: ignore[arg-type]
    clips = log_mel_clips(counting)
    assert counting.reads == 1
    assert torch.equal(clips[0], clips[1]) and torch.equal(clips[0], clips[2])
    padding = torch.full_like(clips[..., 120:], 4.268 / 9.138)
    torch.testing.assert_close(clips[..., 120:], padding, rtol=0, atol=1e-6)


def test_only_the_clips_are_read() -> None:
    ranges: list[tuple[int, int]] = []

    class Recording(Audio):
        def read(self, start: int, stop: int) -> torch.Tensor:
            ranges.append((start, stop))
            return super().read(start, stop)

    opened = open_audio((noise(60, 44100, 1), 44100))
    log_mel_clips(Recording(opened._reader, "recorded"))  # type: ignore[arg-type]
    assert len(ranges) == 3
    assert sum(stop - start for start, stop in ranges) < 3 * 2.05 * 44100


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
@pytest.mark.parametrize("span", [(0.0, 4.0), (0.5, 0.9), (1.25, 3.75), (3.9, 4.0), (1.0, 1.025)])
def test_span_is_a_sound_of_its_own(rate: int, span: tuple[float, float]) -> None:
    waveform = noise(4, rate)
    cut = waveform[:, round(span[0] * rate) : round(span[1] * rate)]
    with open_audio((waveform, rate)) as audio:
        assert_original(log_mel_clips(audio, span), cut, rate)


@pytest.mark.parametrize(
    "span", [(-0.1, 1.0), (1.0, 4.1), (2.0, 1.0), (1.0, 1.0), (1.0, 1.02), (5.0, 6.0), (float("nan"), 1.0)]
)
def test_span_refused(span: tuple[float, float]) -> None:
    with open_audio((noise(4, 16000), 16000)) as audio, pytest.raises(MediaError, match="no span"):
        log_mel_clips(audio, span)


def test_silent_first_channel() -> None:
    waveform = noise(3, 44100, 3)
    waveform[0] = 0
    waveform[1] *= 0.01
    with open_audio((waveform, 44100)) as audio, open_audio((waveform[2], 44100)) as loudest:
        torch.testing.assert_close(log_mel_clips(audio), log_mel_clips(loudest), rtol=0, atol=0.05)
    waveform[0] = noise(3, 44100, 1, seed=5)[0] * 0.001  # quiet, but a sound: the original's channel
    with open_audio((waveform, 44100)) as audio:
        assert_original(log_mel_clips(audio), waveform, 44100)


def test_silent_and_not_finite() -> None:
    waveform = noise(4, 16000)
    waveform[0, 50000] = float("inf")
    with open_audio((waveform, 16000)) as audio, pytest.raises(MediaError, match="not finite"):
        log_mel_clips(audio)
    with open_audio((torch.zeros(2, 64000), 16000)) as audio, pytest.raises(MediaError, match="silent"):
        log_mel_clips(audio)


def test_log_mel_length() -> None:
    for samples, frames in ((300, 1), (400, 1), (16000, 98), (32000, 198), (48000, 204)):
        spectrogram = log_mel(noise(samples / 16000, 16000))
        assert spectrogram.shape == (1, 128, 204)
        padded = (spectrogram - 4.268 / 9.138).abs().amax(dim=1)[0] < 1e-6
        np.testing.assert_array_equal(padded.numpy(), np.arange(204) >= frames)


def test_input_stays_as_it_is() -> None:
    waveform = noise(3, 16000)
    before = waveform.clone()
    with open_audio((waveform, 16000)) as audio:
        log_mel_clips(audio)
    log_mel(waveform)
    assert torch.equal(waveform, before)
