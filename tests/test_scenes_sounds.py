"""Synthesised sounds: reproducible, within range, varied and yet told apart."""

import numpy as np
import pytest
from numpy.typing import NDArray

from avgrad.scenes import CLASSES, SAMPLE_RATE, mix_sound, scene_rng, synthesize


def _features(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean and spread of a coarse log spectrogram's bands, and the spectrum of its changes in time."""
    frames = waveform[: waveform.size // 320 * 320].reshape(-1, 320) * np.hanning(320)
    power = np.abs(np.fft.rfft(frames)) ** 2
    bands = np.stack([part.sum(1) for part in np.array_split(power[:, 1:], 32, axis=1)])
    level = np.log(bands / bands.mean() + 1e-5)
    changes = np.abs(np.fft.rfft(level - level.mean(1, keepdims=True)))[:, 1:40].mean(0)
    return np.concatenate([level.mean(1) - level.mean(), level.std(1), 2 * np.log(changes + 1)])


@pytest.mark.parametrize("object_class", range(len(CLASSES)), ids=[object_class.name for object_class in CLASSES])
def test_sound(object_class: int) -> None:
    first, again, other = (synthesize(object_class, scene_rng("test", 0, i), 2.0) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    for seconds, rate in ((2.0, SAMPLE_RATE), (0.5, SAMPLE_RATE), (5.3, 22_050)):
        wave = synthesize(object_class, scene_rng("test", 1, object_class), seconds, rate)
        assert wave.shape == (round(seconds * rate),)
        assert wave.dtype == np.float32
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() < 1
        assert np.sqrt(np.mean(wave**2)) > 1e-3
        assert wave.mean() ** 2 < 0.05 * np.mean(wave**2)


def test_classes_are_told_apart_yet_vary() -> None:
    """The nearest of the classes' mean features names 80 % of unheard sounds; no two of a class are alike."""
    features = np.array(
        [
            [_features(synthesize(object_class, scene_rng("apart", object_class, i), 2.0)) for i in range(16)]
            for object_class in range(len(CLASSES))
        ]
    )
    centres = features[:, :8].mean(1)
    distances = np.square(features[:, 8:, None] - centres).sum(-1)
    right = distances.argmin(-1) == np.arange(len(CLASSES))[:, None]
    assert right.mean() >= 0.8
    within = np.square(features[:, :8, None] - features[:, None, 8:]).sum(-1)
    assert within.min() > 0.5


def test_mixture() -> None:
    target = synthesize(0, scene_rng("mix", 0, 0), 2.0)
    mixed, again = (mix_sound(0, scene_rng("mix", 0, 0), 2.0, [3, 13]) for _ in range(2))
    np.testing.assert_array_equal(mixed, again)
    assert mixed.shape == target.shape
    assert mixed.dtype == np.float32
    assert np.abs(mixed).max() < 1
    assert 0.5 < np.corrcoef(mixed, target)[0, 1] < 0.9999


def test_wrong_requests_are_refused() -> None:
    for object_class, seconds, rate in (
        (99, 2.0, SAMPLE_RATE),
        (0, 0.0, SAMPLE_RATE),
        (0, 2.0, 4_000),
        (-1, 2.0, SAMPLE_RATE),
    ):
        with pytest.raises(ValueError, match="a sound has classes"):
            synthesize(object_class, scene_rng("test", 0, 0), seconds, rate)
