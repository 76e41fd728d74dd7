"""Building blocks of synthesised sounds: noise, filters, envelopes, partials, repeated events."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]
Numbers = Sequence[float] | NDArray[np.floating]


def seconds_axis(samples: int, sample_rate: int) -> Wave:
    """The times of the samples in seconds."""
    return np.arange(samples, dtype=np.float32) / np.float32(sample_rate)


def white(rng: np.random.Generator, samples: int) -> Wave:
    """White noise of unit variance."""
    return rng.standard_normal(samples, dtype=np.float32)


def shaped(rng: np.random.Generator, samples: int, sample_rate: int, frequencies: Numbers, decibels: Numbers) -> Wave:
    """Noise with a spectrum that is piecewise linear in dB over log frequency, through the given points [n]."""
    padded = 1 << max(8, (samples - 1).bit_length())
    spectrum = np.fft.rfft(white(rng, padded))
    axis = np.log(np.fft.rfftfreq(padded, 1 / sample_rate) + 1.0)
    gain = 10 ** (np.interp(axis, np.log(np.asarray(frequencies) + 1.0), decibels) / 20)
    return np.fft.irfft(spectrum * gain, padded)[:samples].astype(np.float32)


def resonator(wave: Wave, sample_rate: int, frequency: float, bandwidth: float) -> Wave:
    """A two-pole resonance filter of unit peak gain; frequency and bandwidth in Hz."""
    from scipy.signal import lfilter

    frequency = min(frequency, 0.45 * sample_rate)
    radius = math.exp(-math.pi * bandwidth / sample_rate)
    angle = 2 * math.pi * frequency / sample_rate
    gain = (1 - radius) * math.sqrt(1 - 2 * radius * math.cos(2 * angle) + radius**2)
    return np.asarray(lfilter([gain], [1, -2 * radius * math.cos(angle), radius**2], wave), dtype=np.float32)


def smoothed(wave: Wave, sample_rate: int, cutoff: float) -> Wave:
    """A one-pole low-pass filter; cutoff in Hz."""
    from scipy.signal import lfilter

    keep = math.exp(-2 * math.pi * cutoff / sample_rate)
    return np.asarray(lfilter([1 - keep], [1, -keep], wave), dtype=np.float32)


def partials(
    samples: int,
    sample_rate: int,
    frequencies: Numbers,
    gains: Numbers,
    decays: Numbers,
) -> Wave:
    """A sum of decaying sines.

    Args:
        samples: number of samples.
        sample_rate: samples a second.
        frequencies: in Hz; those of at least 0.47 times the sample rate are left out.
        gains: initial amplitudes.
        decays: times to decay by 60 dB, in seconds.
    """
    time = seconds_axis(samples, sample_rate)
    total = np.zeros(samples, dtype=np.float32)
    for frequency, gain, decay in zip(frequencies, gains, decays, strict=True):
        if frequency < 0.47 * sample_rate:
            length = min(samples, int(1.2 * decay * sample_rate) + 1)
            t = time[:length]
            tone = np.sin(np.float32(2 * math.pi * frequency) * t)
            total[:length] += np.float32(gain) * tone * np.exp(np.float32(-6.9 / decay) * t)
    return total


def phase(frequency: Wave, sample_rate: int) -> Wave:
    """Integrates frequencies [n] in Hz to a phase in radians, in [0, 2 pi)."""
    return (2 * math.pi * (np.cumsum(frequency, dtype=np.float64) / sample_rate % 1.0)).astype(np.float32)


def harmonics(angle: Wave, gains: Numbers) -> Wave:
    """The sum of sin(k * angle) * gains[k - 1] over k >= 1."""
    total = np.zeros_like(angle)
    # sin(k a) = 2 cos(a) sin((k-1) a) - sin((k-2) a) needs a single sine
    twice, before, now = 2 * np.cos(angle), np.zeros_like(angle), np.sin(angle)
    for gain in gains:
        total += np.float32(gain) * now
        before, now = now, twice * now - before
    return total


def curve(samples: int, points: Sequence[tuple[float, float]]) -> Wave:
    """Linear interpolation of (position, value) pairs; positions run from 0 (first sample) to 1 (last)."""
    axis = np.arange(samples, dtype=np.float32) / np.float32(max(1, samples))
    line = np.interp(axis, [p for p, _ in points], [v for _, v in points])
    return np.asarray(line, dtype=np.float32)


def drift(rng: np.random.Generator, samples: int, sample_rate: int, rate: float) -> Wave:
    """A slow random signal in [-1, 1] with `rate` knots per second."""
    knots = rng.uniform(-1, 1, max(2, int(samples / sample_rate * rate) + 2))
    return np.interp(np.linspace(0, knots.size - 1, samples), np.arange(knots.size), knots).astype(np.float32)


def add(target: Wave, event: Wave, start: int) -> None:
    """Adds an event to a waveform in place, cut at its end."""
    if 0 <= start < target.size:
        length = min(event.size, target.size - start)
        target[start : start + length] += event[:length]


def fade(wave: Wave, sample_rate: int, attack: float, release: float) -> Wave:
    """Fades an event in and out; both times in seconds."""
    a, r = max(1, int(attack * sample_rate)), max(1, int(release * sample_rate))
    gain = np.ones(wave.size, dtype=np.float32)
    gain[:a] *= np.linspace(0, 1, a, dtype=np.float32)[: wave.size]
    gain[-r:] *= np.linspace(1, 0, r, dtype=np.float32)[-wave.size :]
    return wave * gain


def coloured_noise(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """Background noise: white, pink or brown noise, mains hum, or babble."""
    choice = int(rng.integers(5))
    if choice < 3:
        slope = (0.0, -10.0, -20.0)[choice]
        return shaped(rng, samples, sample_rate, (0, 50, 500, 5_000), (slope, 0, slope, 2 * slope))
    if choice == 3:
        angle = phase(np.full(samples, rng.choice((50.0, 60.0)), dtype=np.float32), sample_rate)
        hum = harmonics(angle, rng.uniform(0, 1, 8) / np.arange(1, 9))
        return hum + np.float32(0.1) * white(rng, samples)
    babble = np.zeros(samples, dtype=np.float32)
    for centre in rng.uniform(250, 2_500, 3):
        band = resonator(white(rng, samples), sample_rate, centre, 180)
        babble += band * np.maximum(0, 0.3 + drift(rng, samples, sample_rate, rng.uniform(3, 6)))
    return babble
