"""Synthesised sounds of the classes, mixed with noise and with each other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avgrad.errors import InputError
from avgrad.scenes.classes import CLASSES
from avgrad.scenes.instrument_sounds import bell, drum, guitar, piano
from avgrad.scenes.machine_sounds import car, clock, helicopter, rain, siren, telephone, train
from avgrad.scenes.noise import coloured_noise
from avgrad.scenes.voice_sounds import bee, bird, cat, dog, frog

SAMPLE_RATE = 16_000

_SYNTHESIZERS = {
    function.__name__: function
    for function in (
        bell,
        drum,
        guitar,
        piano,
        siren,
        clock,
        telephone,
        rain,
        car,
        train,
        helicopter,
        bird,
        bee,
        dog,
        cat,
        frog,
    )
}


def _check(classes: Sequence[int], seconds: float, sample_rate: int) -> None:
    if (
        any(not 0 <= object_class < len(CLASSES) for object_class in classes)
        or not 0.25 <= seconds <= 60
        or sample_rate < 8_000
    ):
        raise InputError(
            f"a sound has classes 0 to {len(CLASSES) - 1}, 0.25 to 60 seconds and 8000 samples a second or more; "
            f"got classes {list(classes)}, {seconds} seconds, {sample_rate} samples a second"
        )


def synthesize(
    object_class: int, rng: np.random.Generator, seconds: float, sample_rate: int = SAMPLE_RATE
) -> NDArray[np.float32]:
    """Synthesises a sound of a class, without noise.

    Args:
        object_class: number of the class in `CLASSES`.
        rng: source of randomness: pitch, tempo, timbre, level, onset.
        seconds: duration, 0.25 to 60.
        sample_rate: samples a second, 8000 or more.

    Returns:
        Waveform [round(seconds * sample_rate)], float32 within (-1, 1); root mean square -30 to -14 dB of full scale,
        less if the peak would clip.

    Raises:
        InputError: an argument is out of range.
    """
    _check([object_class], seconds, sample_rate)
    samples = round(seconds * sample_rate)
    wave = _SYNTHESIZERS[CLASSES[object_class].name](rng, samples, sample_rate)
    return level_to(wave, 10 ** (rng.uniform(-30, -14) / 20))


def mix_sound(
    object_class: int,
    rng: np.random.Generator,
    seconds: float,
    others: Sequence[int] = (),
    sample_rate: int = SAMPLE_RATE,
) -> NDArray[np.float32]:
    """Synthesises a sound of one class with noise and softer sounds of other classes.

    The noise is white, pink, brown, a mains hum or a babble, 6 to 40 dB below the target; each other class is
    3 to 20 dB below it.

    Args:
        object_class: number of the target class.
        rng: source of randomness.
        seconds: duration, 0.25 to 60.
        others: numbers of the other classes.
        sample_rate: samples a second, 8000 or more.

    Returns:
        Waveform [round(seconds * sample_rate)], float32 within (-1, 1).

    Raises:
        InputError: an argument is out of range.
    """
    _check([object_class, *others], seconds, sample_rate)
    wave = synthesize(object_class, rng, seconds, sample_rate)
    power = rms_of(wave)
    for other in others:
        wave = wave + level_to(synthesize(other, rng, seconds, sample_rate), power * 10 ** (-rng.uniform(3, 20) / 20))
    noise = coloured_noise(rng, wave.size, sample_rate)
    return level_to(wave + level_to(noise, power * 10 ** (-rng.uniform(6, 40) / 20)), power)


def rms_of(wave: NDArray[np.float32]) -> float:
    """The root mean square of a waveform."""
    return float(np.sqrt(np.mean(np.square(wave)) + 1e-12))


def level_to(wave: NDArray[np.float32], rms: float) -> NDArray[np.float32]:
    """Scales to a root mean square, or less if the peak would exceed 0.99."""
    gain = min(rms / rms_of(wave), 0.99 / (float(np.abs(wave).max()) + 1e-9))
    return (wave * np.float32(gain)).astype(np.float32)
