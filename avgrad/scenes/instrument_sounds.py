"""Synthesised sounds of the instruments: bell, drum, guitar and piano.

Each function takes a generator, a number of samples and a sample rate, and returns a waveform of arbitrary
level.
"""

import numpy as np

from avgrad.scenes.noise import (
    Wave,
    add,
    curve,
    fade,
    partials,
    phase,
    resonator,
    seconds_axis,
    smoothed,
    white,
)


def bell(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """One to several strikes of a bell: slowly decaying inharmonic partials of a church bell's ratios."""
    prime = 220 * 2 ** rng.uniform(0.3, 2.3)
    ratios = np.array([0.5, 1.0, 1.2, 1.5, 2.0, 2.5, 2.67, 3.0, 4.0, 5.3]) * rng.normal(1, 0.006, 10)
    gains = np.array([0.5, 0.8, 0.6, 0.35, 1.0, 0.3, 0.3, 0.4, 0.3, 0.2]) * rng.uniform(0.5, 1.5, 10)
    decays = rng.uniform(2.0, 5.0) / ratios**0.7
    strike = partials(samples, sample_rate, ratios * prime, gains, decays)
    click = white(rng, int(0.01 * sample_rate))
    add(strike, fade(click, sample_rate, 0.001, 0.008) * np.float32(0.6), 0)
    total = np.zeros(samples, dtype=np.float32)
    position, interval = rng.uniform(0, 0.15), rng.uniform(0.45, 1.4)
    while position * sample_rate < samples:
        add(total, strike * np.float32(rng.uniform(0.6, 1.0)), int(position * sample_rate))
        position += interval * rng.uniform(0.93, 1.07)
    return total


def drum(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """A rhythm of strokes: a falling tone of the skin, a burst of noise from the snares; sometimes a roll."""
    length = int(rng.uniform(0.16, 0.32) * sample_rate)
    t = seconds_axis(length, sample_rate)
    pitch = rng.uniform(85, 190)
    tone = np.sin(phase((pitch * (1 + rng.uniform(0.3, 1.0) * np.exp(-t * 40))).astype(np.float32), sample_rate))
    body = tone * np.exp(-t * rng.uniform(14, 28))
    rattle = resonator(white(rng, length), sample_rate, rng.uniform(1_500, 3_500), 2_500) * np.exp(
        -t * rng.uniform(18, 40)
    )
    stroke = fade((body + rng.uniform(1.0, 3.0) * rattle).astype(np.float32), sample_rate, 0.001, 0.01)
    step = 15 / rng.uniform(75, 150)
    accents = np.where(rng.random(8) < 0.55, rng.uniform(0.3, 1.0, 8), 0.0)
    accents[0] = 1.0
    if rng.random() < 0.25:
        accents, step = rng.uniform(0.5, 1.0, 8), rng.uniform(0.05, 0.075)
    total = np.zeros(samples, dtype=np.float32)
    position, beat = rng.uniform(0, 0.15), 0
    while position * sample_rate < samples:
        gain = accents[beat % 8]
        if gain > 0:
            add(total, stroke * np.float32(gain * rng.uniform(0.85, 1.0)), int(position * sample_rate))
        position, beat = position + step, beat + 1
    return total


def _pluck(rng: np.random.Generator, samples: int, sample_rate: int, pitch: float, bright: float, loss: float) -> Wave:
    """A plucked string after Karplus and Strong, computed period by period."""
    period = max(4, round(sample_rate / pitch))
    ring = smoothed(white(rng, period), sample_rate, bright)
    # the loop damps everything but a constant offset, which would outlast the tone
    ring = ring - ring.mean()
    count = -(-samples // period)
    periods = np.empty((count, period), dtype=np.float32)
    for k in range(count):
        periods[k] = ring
        ring = np.float32(0.5 * loss) * (ring + np.concatenate([ring[-1:], ring[:-1]]))
    return periods.reshape(-1)[:samples]


def guitar(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """Strummed or picked chords of plucked strings with a resonating body."""
    root = 82.4 * 2 ** (rng.integers(0, 10) / 12)
    chord = np.array([0, 7, 12, 16 if rng.random() < 0.6 else 15, 19, 24])
    bright, loss = rng.uniform(1_500, 6_000), rng.uniform(0.994, 0.999)
    ring = min(samples, int(1.6 * sample_rate))
    strings = [_pluck(rng, ring, sample_rate, root * 2 ** (n / 12), bright, loss) for n in chord]
    picked = rng.random() < 0.4
    delay, interval = (rng.uniform(0.12, 0.26), 0.0) if picked else (rng.uniform(0.008, 0.035), rng.uniform(0.35, 1.1))
    order = rng.permutation(6) if picked else np.arange(6)
    total = np.zeros(samples, dtype=np.float32)
    position = rng.uniform(0, 0.15)
    while position * sample_rate < samples:
        for k, string in enumerate(order):
            add(
                total,
                strings[string] * np.float32(rng.uniform(0.6, 1.0)),
                int((position + k * delay) * sample_rate),
            )
        position += 6 * delay if picked else interval * rng.choice((0.5, 1.0))
        order = order[::-1] if not picked else order
    return total + resonator(total, sample_rate, rng.uniform(95, 125), 30) + resonator(total, sample_rate, 210, 50)


def piano(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """A tune over chords: struck strings with slightly stretched harmonics and two stages of decay."""
    key = 261.6 * 2 ** (rng.integers(-5, 7) / 12)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12])
    beat = rng.uniform(0.16, 0.42)
    stretch, hardness = rng.uniform(2e-4, 9e-4), rng.uniform(0.5, 0.85)
    total = np.zeros(samples, dtype=np.float32)
    position, degree, count = rng.uniform(0, 0.15), int(rng.integers(8)), 0
    while position * sample_rate < samples:
        notes = [scale[degree] + 12]
        if count % 4 == 0:
            notes += [scale[k % 7] - 12 * (k >= 7) for k in (degree % 4, degree % 4 + 2, degree % 4 + 4)]
        for note in notes:
            pitch = key * 2 ** (note / 12)
            k = np.arange(1, 8)
            frequencies = pitch * k * np.sqrt(1 + stretch * k**2)
            length = min(samples - int(position * sample_rate), int(1.1 * sample_rate))
            decay = 2.4 * (261.6 / pitch) ** 0.5 / k**0.5
            tone = partials(length, sample_rate, frequencies, hardness ** (k - 1), decay)
            hammer = curve(length, [(0, 0), (0.004, 1), (0.12, 0.6), (1, 0.35)])
            add(total, tone * hammer * np.float32(rng.uniform(0.5, 1.0)), int(position * sample_rate))
        position += beat * rng.choice((1.0, 1.0, 2.0))
        degree, count = int(np.clip(degree + rng.integers(-2, 3), 0, 7)), count + 1
    return total
