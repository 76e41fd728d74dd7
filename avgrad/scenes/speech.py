"""Spoken prompts: the classes' names in short phrases, by synthetic voices that ship with the package.

`python -m training.voices` rebuilds the voices; only that needs espeak-ng.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.texts import Split

SAMPLE_RATE = 16_000
VOICES = Path(__file__).parent / "voices"


class SpokenPhrase(NamedTuple):
    """A spoken prompt.

    Attributes:
        waveform: float32 [samples], 16 kHz, within [-1, 1].
        start: start of the class's name in the waveform, in seconds.
        end: end of the name, in seconds.
        phrase: the words.
        voice: name of the voice.
    """

    waveform: NDArray[np.float32]
    start: float
    end: float
    phrase: str
    voice: str


class _Entry(NamedTuple):
    """A bundled phrase: its times in the voice's file and the name's times in the phrase, in seconds."""

    voice: str
    phrase: str
    start: float
    end: float
    word_start: float
    word_end: float


@functools.cache
def _entries(split: Split) -> dict[int, list[_Entry]]:
    index = json.loads((VOICES / "index.json").read_text(encoding="utf-8"))
    entries: dict[int, list[_Entry]] = {object_class: [] for object_class in range(len(CLASSES))}
    for voice in index[split]:
        for object_class, phrase, *times in voice["phrases"]:
            entries[object_class].append(_Entry(voice["voice"], phrase, *times))
    return entries


@functools.cache
def _recording(voice: str) -> NDArray[np.float32]:
    """All phrases of a voice, decoded: float32 [samples], 16 kHz."""
    import soundfile

    waveform, sample_rate = soundfile.read(VOICES / f"{voice}.opus", dtype="float32")
    if sample_rate != SAMPLE_RATE:
        raise RuntimeError(f"the voice {voice} was decoded at {sample_rate} Hz; it must be {SAMPLE_RATE}")
    return np.asarray(waveform, dtype=np.float32)


def voices(split: Split) -> tuple[str, ...]:
    """The sorted names of the voices of a split; no voice is in both splits."""
    return tuple(sorted({entry.voice for entry in _entries(split)[0]}))


def spoken(object_class: int, rng: np.random.Generator, split: Split = "train", augment: bool = False) -> SpokenPhrase:
    """A random phrase with a class's name, by a random voice.

    Args:
        object_class: number of the class in `CLASSES`.
        rng: source of randomness.
        split: "train" or "heldout"; they share neither voices nor phrases.
        augment: change speed and pitch together by up to 12 %, the spectral tilt by up to 6 dB at either end, the level
            by up to 12 dB, and add white noise 10 to 45 dB below the voice.

    Returns:
        The phrase, 0.2 to 3 seconds long.
    """
    entries = _entries(split)[object_class]
    entry = entries[int(rng.integers(len(entries)))]
    recording = _recording(entry.voice)
    waveform = recording[round(entry.start * SAMPLE_RATE) : round(entry.end * SAMPLE_RATE)].copy()
    # times in the index are rounded: a name may end a fraction of a sample after the recording
    word_end = min(entry.word_end, waveform.size / SAMPLE_RATE)
    phrase = SpokenPhrase(waveform, entry.word_start, word_end, entry.phrase, entry.voice)
    return _augmented(phrase, rng) if augment else phrase


def _augmented(phrase: SpokenPhrase, rng: np.random.Generator) -> SpokenPhrase:
    speed = rng.uniform(0.88, 1.12)
    source = phrase.waveform
    length = round(source.size / speed)
    wave = np.interp(np.arange(length) * speed, np.arange(source.size), source)
    padded = 1 << (length - 1).bit_length()
    frequencies = np.fft.rfftfreq(padded, 1 / SAMPLE_RATE)
    tilt = rng.uniform(-6, 6) * np.clip(np.log2((frequencies + 1) / 1_000) / 3, -1, 1)
    wave = np.fft.irfft(np.fft.rfft(wave, padded) * 10 ** (tilt / 20), padded)[:length]
    rms = float(np.sqrt(np.mean(wave**2))) + 1e-9
    wave = wave + rng.standard_normal(length) * rms * 10 ** (-rng.uniform(10, 45) / 20)
    wave *= min(10 ** (rng.uniform(-12, 3) / 20), 0.99 / (float(np.abs(wave).max()) + 1e-9))
    word_end = min(phrase.end / speed, length / SAMPLE_RATE)
    return SpokenPhrase(wave.astype(np.float32), phrase.start / speed, word_end, phrase.phrase, phrase.voice)
