"""Synthesised sounds of the animals: bird, bee, dog, cat and frog.

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
    phase,
    resonator,
    seconds_axis,
    white,
)


def bird(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """A song: motifs of two to six short whistles, each a sweep between 2 and 6.5 kHz, some trilled."""
    syllables = []
    for _ in range(int(rng.integers(2, 4))):
        length = int(rng.uniform(0.05, 0.17) * sample_rate)
        course = curve(
            length,
            [
                (0, rng.uniform(2_000, 6_000)),
                (rng.uniform(0.3, 0.7), rng.uniform(2_400, 6_500)),
                (1, rng.uniform(2_000, 6_000)),
            ],
        )
        if rng.random() < 0.4:
            t = seconds_axis(length, sample_rate)
            course = course * (1 + rng.uniform(0.04, 0.12) * np.sin(2 * math.pi * rng.uniform(25, 70) * t)).astype(
                np.float32
            )
        tone = harmonics(phase(course, sample_rate), (1.0, rng.uniform(0, 0.15)))
        syllables.append(fade(tone, sample_rate, 0.012, 0.03))
    motif = rng.integers(0, len(syllables), int(rng.integers(2, 7)))
    gap, pause = rng.uniform(0.02, 0.08), rng.uniform(0.15, 0.5)
    total = np.zeros(samples, dtype=np.float32)
    position = rng.uniform(0, 0.25)
    while position * sample_rate < samples:
        for k in motif:
            add(total, syllables[k] * np.float32(rng.uniform(0.7, 1.0)), int(position * sample_rate))
            position += syllables[k].size / sample_rate + gap
        position += pause
    return total


def bee(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """A buzz: many harmonics of the wing beat, 150 to 270 times a second, wavering as it comes and goes."""
    beat = rng.uniform(150, 270) * (1 + rng.uniform(0.02, 0.08) * drift(rng, samples, sample_rate, rng.uniform(2, 5)))
    beat *= 1 + 0.008 * drift(rng, samples, sample_rate, 40)
    k = np.arange(1, 21)
    gains = rng.uniform(0.4, 1.0, 20) / k ** rng.uniform(0.4, 0.9)
    buzz = harmonics(phase(beat.astype(np.float32), sample_rate), gains)
    buzz = buzz + resonator(buzz, sample_rate, rng.uniform(600, 1_400), 500) * 1.5
    near = 0.65 + 0.35 * drift(rng, samples, sample_rate, rng.uniform(1.5, 4))
    return np.asarray((buzz + 0.12 * white(rng, samples)) * near, dtype=np.float32)


def dog(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """Barks: short rough bursts whose pitch jumps up and falls, through the resonances of a throat."""
    size = rng.uniform(0.0, 1.0)
    pitch = 480 * (0.28**size)
    formants = [(f * 1.3 * 0.62**size, b) for f, b in ((720, 180), (1_350, 260), (2_700, 500))]
    total = np.zeros(samples, dtype=np.float32)
    position = rng.uniform(0, 0.25)
    group = int(rng.integers(1, 4))
    while position * sample_rate < samples:
        for _ in range(group):
            length = int(rng.uniform(0.11, 0.2) * (0.8 + 0.5 * size) * sample_rate)
            course = pitch * rng.uniform(0.92, 1.08) * curve(length, [(0, 0.7), (0.25, 1.25), (0.6, 1.0), (1, 0.6)])
            rough = course * (1 + 0.06 * white(rng, length))
            source = harmonics(phase(rough.astype(np.float32), sample_rate), 0.88 ** np.arange(14))
            source = source + rng.uniform(0.5, 1.4) * white(rng, length)
            bark = sum((resonator(source, sample_rate, f, b) for f, b in formants), 0.15 * source)
            bark = bark * curve(length, [(0, 0), (0.06, 1), (0.35, 0.85), (1, 0)])
            add(total, np.asarray(bark, dtype=np.float32), int(position * sample_rate))
            position += length / sample_rate + rng.uniform(0.06, 0.16)
        position += rng.uniform(0.2, 0.6)
    return total


def cat(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """Meows: a long gliding voice whose formants move from ee through ah to oo."""
    total = np.zeros(samples, dtype=np.float32)
    pitch = rng.uniform(380, 720)
    position = rng.uniform(0, 0.25)
    while position * sample_rate < samples:
        length = int(rng.uniform(0.5, 1.0) * sample_rate)
        peak = rng.uniform(0.25, 0.55)
        course = pitch * curve(length, [(0, 0.82), (peak, rng.uniform(1.1, 1.35)), (1, rng.uniform(0.65, 0.85))])
        course = course * (1 + 0.012 * np.sin(2 * math.pi * 6 * seconds_axis(length, sample_rate)))
        angle = phase(course.astype(np.float32), sample_rate)
        first = curve(length, [(0, 450), (peak, rng.uniform(900, 1_150)), (1, 450)])
        second = curve(length, [(0, 2_300), (peak, 1_700), (1, 950)])
        meow = np.zeros(length, dtype=np.float32)
        twice, before, now = 2 * np.cos(angle), np.zeros(length, dtype=np.float32), np.sin(angle)
        for k in range(1, 13):
            frequency = course * k
            gain = 1 / (1 + ((frequency - first) / 260) ** 2) + 0.6 / (1 + ((frequency - second) / 350) ** 2) + 0.04
            meow += (gain * now).astype(np.float32)
            before, now = now, twice * now - before
        meow += 0.02 * white(rng, length)
        add(total, fade(meow, sample_rate, 0.07, 0.2), int(position * sample_rate))
        position += length / sample_rate + rng.uniform(0.15, 0.6)
        pitch *= rng.uniform(0.92, 1.08)
    return total


def frog(rng: np.random.Generator, samples: int, sample_rate: int) -> Wave:
    """Croaks: trains of 25 to 60 pulses a second, damped rings of the vocal sac, mostly in pairs."""
    rate = rng.uniform(25, 60)
    low = rng.uniform(380, 900)
    high = low * rng.uniform(1.9, 2.8)
    paired = rng.random() < 0.6
    total = np.zeros(samples, dtype=np.float32)
    position = rng.uniform(0, 0.25)
    pause = rng.uniform(0.2, 0.5)
    while position * sample_rate < samples:
        parts = ((0.13, 1.0), (0.17, 1.25)) if paired else ((rng.uniform(0.3, 0.5), 1.0),)
        for duration, lift in parts:
            length = int(duration * rng.uniform(0.9, 1.1) * sample_rate)
            impulses = np.zeros(length, dtype=np.float32)
            steps = np.arange(0, length, sample_rate / rate) + rng.normal(0, 8, math.ceil(length * rate / sample_rate))
            impulses[np.clip(steps, 0, length - 1).astype(int)] = 1.0
            croak = resonator(impulses, sample_rate, low * lift, 90) + 0.8 * resonator(
                impulses, sample_rate, high * lift, 160
            )
            croak = croak * curve(length, [(0, 0.3), (0.4, 1), (0.85, 0.9), (1, 0)])
            add(total, croak, int(position * sample_rate))
            position += length / sample_rate + 0.03
        position += pause * rng.uniform(0.9, 1.1)
    return total
