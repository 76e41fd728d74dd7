"""The bundled voices and the written prompts."""

import re

import numpy as np
import pytest

from avgrad.scenes import CLASSES, scene_rng, spoken, texts
from avgrad.scenes.speech import SAMPLE_RATE, VOICES, voices


def test_bundle_is_small() -> None:
    sizes = [path.stat().st_size for path in VOICES.iterdir()]
    assert sum(sizes) <= 3 * 2**20
    assert max(sizes) <= 2**20


def test_held_out_voices_and_phrases_are_disjoint() -> None:
    train, heldout = voices("train"), voices("heldout")
    assert len(train) >= 20
    assert len(heldout) >= 5
    assert not set(train) & set(heldout)
    heard = {
        split: {spoken(0, scene_rng(split, 0, i), split).phrase for i in range(150)} for split in ("train", "heldout")
    }
    assert len(heard["train"]) >= 4
    assert len(heard["heldout"]) >= 2
    assert not heard["train"] & heard["heldout"]


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("augment", [False, True])
def test_spoken(split: str, augment: bool) -> None:
    for object_class, properties in enumerate(CLASSES):
        for index in range(6):
            phrase, again = (
                spoken(object_class, scene_rng("spoken", object_class, index), split, augment) for _ in range(2)
            )
            np.testing.assert_array_equal(phrase.waveform, again.waveform)
            assert phrase[1:] == again[1:]
            seconds = phrase.waveform.size / SAMPLE_RATE
            assert phrase.waveform.dtype == np.float32
            assert 0.2 < seconds < 3
            assert np.abs(phrase.waveform).max() <= 1
            assert 0 <= phrase.start < phrase.end <= seconds
            assert 0.2 < phrase.end - phrase.start < 1.3
            assert properties.name in phrase.phrase
            assert phrase.voice in voices(split)


def test_timing_marks_the_name() -> None:
    """A name is as long in a phrase as alone, to 0.06 s for 98 of 100, and louder than what follows."""
    lengths: dict[tuple[str, int], dict[str, float]] = {}
    for object_class in range(len(CLASSES)):
        for index in range(120):
            phrase = spoken(object_class, scene_rng("timing", object_class, index))
            lengths.setdefault((phrase.voice, object_class), {})[phrase.phrase] = phrase.end - phrase.start
            name = phrase.waveform[int(phrase.start * SAMPLE_RATE) : int(phrase.end * SAMPLE_RATE)]
            rest = phrase.waveform[int(phrase.end * SAMPLE_RATE) :]
            assert np.square(name).mean() > 10 * np.square(rest).mean()
    differences = [
        abs(length - by_phrase[CLASSES[object_class].name])
        for (_, object_class), by_phrase in lengths.items()
        for phrase, length in by_phrase.items()
        if CLASSES[object_class].name in by_phrase and phrase != CLASSES[object_class].name
    ]
    assert len(differences) > 300
    assert np.quantile(differences, 0.98) < 0.06
    assert max(differences) < 0.12


def test_texts() -> None:
    for object_class, properties in enumerate(CLASSES):
        train, heldout = texts(object_class, "train"), texts(object_class, "heldout")
        plain = (properties.name, *properties.synonyms)
        assert train[: len(plain)] == heldout[: len(plain)] == plain
        assert not set(train[len(plain) :]) & set(heldout[len(plain) :])
        assert len(set(train)) == len(train)
    vocabulary = {
        word
        for object_class in range(len(CLASSES))
        for text in texts(object_class, "train")
        for word in re.findall(r"\w+", text)
    }
    unseen = {
        word
        for object_class in range(len(CLASSES))
        for text in texts(object_class, "heldout")
        for word in re.findall(r"\w+", text)
    }
    assert unseen <= vocabulary
    assert len(vocabulary) < 100
