"""Synthesised sounds of machines and weather: siren, clock, telephone, rain, car, train, helicopter.

Each function takes a generator, a number of samples and a sample rate, and returns a waveform of arbitrary
level.
"""

import math

import numpy as np

from avgrad.scenes.noise import (
    Wave,
    add,
    curve,
    drift,
    fade,
    harmonics,
    partials,
    phase,
    resonator,
    seconds_axis,
    shaped,
    white,
)


def siren(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """A wail, a fast yelp or a two-tone horn: harmonics of a frequency that sweeps or alternates."""
    t = seconds_axis(samples, sample_rate)
    low = rng.uniform(420, 700)
    high = low * rng.uniform(1.6, 2.6)
    start = rng.random()
    mode = rng.random()
    if mode < 0.7:
        turn = (t * rng.uniform(0.35, 0.9) if mode < 0.4 else t * rng.uniform(1.8, 3.6)) + start
        swing = 0.5 - 0.5 * np.cos(2 * math.pi * turn)
    else:
        high = low * rng.uniform(1.25, 1.5)
        swing = ((t * rng.uniform(0.9, 1.8) + start) % 1 > 0.5).astype(np.float32)
    angle = phase((low + (high - low) * swing).astype(np.float32), sample_rate)
    gains = rng.uniform(0.5, 1.0, 5) * rng.uniform(0.35, 0.7) ** np.arange(5)
    return harmonics(angle, gains) * (1 + 0.15 * drift(rng, samples, sample_rate, 4))


def clock(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """Tick and tock: short clicks of a wooden or metal case at an even pace, alternating in pitch."""
    pitch, wood = rng.uniform(1_800, 4_200), rng.uniform(300, 900)
    clicks = []
    for ratio in (1.0, rng.uniform(0.72, 0.9)):
        length = int(0.07 * sample_rate)
        ratios = np.array([1.0, 1.57, 0.63]) * pitch * ratio
        click = partials(length, sample_rate, ratios, (1.0, 0.6, 0.5), rng.uniform(0.012, 0.035, 3))
        click += partials(length, sample_rate, [wood * ratio], [rng.uniform(0.2, 0.8)], [0.05])
        click[: length // 12] += 0.5 * white(rng, length // 12) * np.linspace(1, 0, length // 12, dtype=np.float32)
        clicks.append(click)
    interval = rng.uniform(0.2, 0.55)
    position, k = rng.uniform(0, min(interval, 0.3)), 0
    total = np.zeros(samples, dtype=np.float32)
    while position * sample_rate < samples:
        add(total, clicks[k % 2] * np.float32(rng.uniform(0.85, 1.0)), int(position * sample_rate))
        position, k = position + interval, k + 1
    return total + np.float32(1e-4) * white(rng, samples)


def telephone(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """Rings and pauses: two small gongs struck about twenty times a second, or an electronic warble."""
    time = seconds_axis(samples, sample_rate)
    rate = rng.uniform(16, 25)
    low = rng.uniform(900, 1_500)
    high = low * rng.uniform(1.18, 1.35)
    if rng.random() < 0.7:
        length = int(0.35 * sample_rate)
        gongs = [
            partials(length, sample_rate, f * np.array([1.0, 2.7, 4.1]), (1.0, 0.7, 0.4), (0.5, 0.3, 0.2))
            for f in (low, high)
        ]
        wave = np.zeros(samples, dtype=np.float32)
        for k in range(int(samples / sample_rate * rate) + 1):
            add(wave, gongs[k % 2], int(k / rate * sample_rate))
    else:
        swing = (time * rate * 0.7) % 1 > 0.5
        angle = phase(np.where(swing, high, low).astype(np.float32), sample_rate)
        wave = harmonics(angle, (1.0, 0.0, 0.4, 0.0, 0.2))
    on, off = rng.uniform(0.5, 1.2), rng.uniform(0.25, 0.7)
    gate = ((time + rng.uniform(0, 0.3)) % (on + off) < on).astype(np.float32)
    ramp = np.ones(int(0.02 * sample_rate), dtype=np.float32)
    return wave * np.convolve(gate, ramp / ramp.size, mode="same")


def rain(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """Rain: a broad steady hiss and many single drops, sometimes over a far thunder."""
    tilt = rng.uniform(-10, 4)
    hiss = shaped(rng, samples, sample_rate, (0, 200, 1_000, 4_000, 8_000), (-40, -18, -4, 0, tilt))
    hiss *= 1 + 0.25 * drift(rng, samples, sample_rate, rng.uniform(0.5, 2))
    rate = rng.uniform(20, 160)
    impulses = np.zeros(samples, dtype=np.float32)
    count = max(1, int(rng.poisson(samples / sample_rate * rate)))
    impulses[rng.integers(0, samples, count)] = rng.exponential(1.0, count)
    drops = np.zeros(samples, dtype=np.float32)
    for frequency in rng.uniform(900, 5_500, 3):
        drops += resonator(impulses, sample_rate, frequency, 400) * 6
        impulses = np.roll(impulses, 137)
    wave = hiss / (np.abs(hiss).mean() + 1e-9) * 0.1 + drops * rng.uniform(0.1, 0.6)
    if rng.random() < 0.2:
        rumble = shaped(rng, samples, sample_rate, (0, 40, 120, 400), (-30, 0, -6, -50))
        swell = curve(samples, [(0, 0.1), (rng.uniform(0.1, 0.5), 1), (1, 0.2)])
        wave = wave + rumble / (np.abs(rumble).mean() + 1e-9) * 0.12 * swell
    return np.asarray(wave, dtype=np.float32)


def car(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """A two-tone horn, once or more often, over a running engine."""
    firing = rng.uniform(28, 60) * (
        1 + rng.uniform(0, 0.8) * curve(samples, [(0, 0), (rng.uniform(0.3, 0.9), 1), (1, 0.2)])
    )
    firing *= 1 + 0.02 * drift(rng, samples, sample_rate, 10)
    engine = harmonics(
        phase(firing.astype(np.float32), sample_rate), rng.uniform(0.3, 1.0, 10) / np.arange(1, 11) ** 0.5
    )
    engine = resonator(engine + 0.3 * white(rng, samples), sample_rate, rng.uniform(120, 260), 200)
    engine = engine / (np.abs(engine).mean() + 1e-9)
    base = rng.uniform(300, 430)
    gains = rng.uniform(0.6, 1.0, 9) * rng.uniform(0.75, 0.92) ** np.arange(9)
    horn = np.zeros(samples, dtype=np.float32)
    for pitch in (base, base * rng.uniform(1.22, 1.28)):
        horn += harmonics(phase(np.full(samples, pitch, dtype=np.float32), sample_rate), gains)
    horn = horn / (np.abs(horn).mean() + 1e-9)
    gate = np.zeros(samples, dtype=np.float32)
    position, length = rng.uniform(0.0, 0.4), rng.uniform(0.15, 0.9)
    while position * sample_rate < samples:
        toot = fade(
            np.ones(int(length * sample_rate * rng.uniform(0.8, 1.2)), dtype=np.float32),
            sample_rate,
            0.015,
            0.03,
        )
        add(gate, toot, int(position * sample_rate))
        position += length * 1.2 + rng.uniform(0.12, 0.6)
    return np.asarray(engine * rng.uniform(0.15, 0.6) + horn * np.minimum(gate, 1), dtype=np.float32)


def train(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """A steam engine: puffs of noise in fours, the first strongest, and mostly a breathy chime whistle."""
    interval = rng.uniform(0.11, 0.3)
    length = int(min(interval * 0.95, 0.2) * sample_rate)
    puff = shaped(rng, length, sample_rate, (0, 100, 500, 1_500, 8_000), (-25, -4, 0, -8, -28))
    puff *= np.exp(-seconds_axis(length, sample_rate) * rng.uniform(10, 20)).astype(np.float32)
    puff = fade(puff, sample_rate, 0.012, 0.02)
    puff /= np.abs(puff).max() + 1e-9
    total = np.zeros(samples, dtype=np.float32)
    position, k = rng.uniform(0, interval), 0
    while position * sample_rate < samples:
        accent = 1.0 if k % 4 == 0 else rng.uniform(0.5, 0.75)
        add(total, puff * np.float32(accent), int(position * sample_rate))
        position, k = position + interval, k + 1
    if rng.random() < 0.8:
        duration = min(samples, int(rng.uniform(0.5, 1.4) * sample_rate))
        base = rng.uniform(340, 560)
        bend = base * curve(duration, [(0, 0.9), (0.12, 1.0), (0.85, 1.0), (1, 0.93)])
        chime = np.zeros(duration, dtype=np.float32)
        for ratio in (1.0, 1.26, 1.5):
            vibrato = 1 + 0.004 * np.sin(2 * math.pi * 5.5 * seconds_axis(duration, sample_rate))
            chime += harmonics(phase((bend * ratio * vibrato).astype(np.float32), sample_rate), (1.0, 0.35, 0.2, 0.08))
        breath = resonator(white(rng, duration), sample_rate, base * 3, 1_500) * 3
        whistle = fade(chime + breath, sample_rate, 0.08, 0.12)
        add(
            total,
            whistle * np.float32(rng.uniform(0.08, 0.25)),
            int(rng.uniform(0, max(1, samples - duration))),
        )
    return total


def helicopter(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """Blades that slap the air 9 to 18 times a second, a roar that swells with them, a turbine's whine."""
    rate = rng.uniform(9, 18)
    turn = (seconds_axis(samples, sample_rate) * rate + rng.random()) % 1
    slap = np.exp(-turn * rng.uniform(5, 9)).astype(np.float32)
    roar = shaped(rng, samples, sample_rate, (0, 40, 90, 300, 1_000, 5_000), (-20, 0, 0, -8, -20, -42))
    roar /= np.abs(roar).mean() + 1e-9
    thump = np.sin(2 * math.pi * rng.uniform(55, 95) / rate * turn).astype(np.float32) * slap
    whine_pitch = np.full(samples, rng.uniform(1_800, 3_800), dtype=np.float32) * (
        1 + 0.01 * drift(rng, samples, sample_rate, 2)
    )
    whine = harmonics(phase(whine_pitch.astype(np.float32), sample_rate), (1.0, 0.3))
    swell = curve(samples, [(0, rng.uniform(0.5, 1)), (rng.uniform(0.3, 0.7), 1), (1, rng.uniform(0.5, 1))])
    wave = swell * (roar * (0.12 + slap) + 2.5 * thump + rng.uniform(0.02, 0.12) * whine)
    return np.asarray(wave, dtype=np.float32)
