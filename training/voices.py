"""Builds the bundled voices with the shared library of espeak-ng (1.51): `python -m training.voices`."""

import ctypes
import ctypes.util
import json
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.speech import VOICES
from avgrad.scenes.texts import Split

SAMPLE_RATE = 16_000

TRAIN_PHRASES = (
    "a {}",
    "the {}",
    "look, a {}",
    "where is the {}?",
    "I hear a {}",
    "that is a {}",
    "find the {}",
)
HELDOUT_PHRASES = ("can you see the {}?", "show me a {}", "listen, the {}")
_GAP = 0.1
_EVENT_WORD = 1
_HOP = 80


class _Voice(NamedTuple):
    """Settings of espeak-ng: accent, variant, pitch (0 to 99) and speed (words a minute)."""

    accent: str
    variant: str
    pitch: int
    speed: int


TRAIN_VOICES = (
    _Voice("en", "m1", 50, 150),
    _Voice("en", "f1", 50, 160),
    _Voice("en", "m3", 35, 135),
    _Voice("en", "f2", 62, 175),
    _Voice("en-us", "m2", 45, 165),
    _Voice("en-us", "f3", 55, 150),
    _Voice("en-us", "m4", 60, 180),
    _Voice("en-us", "f1", 40, 140),
    _Voice("en-us", "m6", 30, 155),
    _Voice("en-gb-scotland", "m5", 50, 150),
    _Voice("en-gb-scotland", "f2", 48, 145),
    _Voice("en-gb-x-rp", "m2", 55, 170),
    _Voice("en-gb-x-rp", "f3", 68, 160),
    _Voice("en-gb-x-rp", "m6", 42, 130),
    _Voice("en-gb-x-gbclan", "m4", 38, 150),
    _Voice("en-gb-x-gbclan", "f1", 60, 165),
    _Voice("en-029", "m3", 52, 155),
    _Voice("en-029", "f3", 45, 170),
    _Voice("en-us-nyc", "m1", 40, 175),
    _Voice("en-us-nyc", "f2", 58, 145),
)
HELDOUT_VOICES = (
    _Voice("en", "m7", 56, 155),
    _Voice("en", "f4", 54, 148),
    _Voice("en-us", "m8", 44, 142),
    _Voice("en-us", "f5", 52, 162),
    _Voice("en-gb-x-gbcwmd", "f4", 60, 152),
    _Voice("en-gb-x-gbcwmd", "m7", 46, 158),
)


class _Event(ctypes.Structure):
    """espeak_EVENT; the union at its end is as wide as a pointer."""

    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_void_p),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))


class _Espeak:
    """Synthesises phrases, with the start of each word."""

    def __init__(self) -> None:
        path = ctypes.util.find_library("espeak-ng")
        if path is None:
            raise RuntimeError("the shared library of espeak-ng was not found; on Debian it is in libespeak-ng1")
        self._library = ctypes.CDLL(path)
        self.sample_rate = int(self._library.espeak_Initialize(2, 0, None, 0))
        self._samples = bytearray()
        self._words: list[tuple[int, float]] = []
        self._callback = _CALLBACK(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: int | None, count: int, events: "ctypes._Pointer[_Event]") -> int:
        if samples and count:
            self._samples += ctypes.string_at(samples, 2 * count)
        k = 0
        while events[k].type != 0:
            if events[k].type == _EVENT_WORD:
                self._words.append((events[k].text_position - 1, events[k].audio_position / 1_000))
            k += 1
        return 0

    def speak(self, voice: _Voice, text: str) -> tuple[NDArray[np.float32], list[tuple[int, float]]]:
        """The waveform, and each word's position in the text and start in seconds."""
        name = f"{voice.accent}+{voice.variant}"
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {name}")
        self._library.espeak_SetParameter(1, voice.speed, 0)
        self._library.espeak_SetParameter(3, voice.pitch, 0)
        self._samples.clear()
        self._words.clear()
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None)
        self._library.espeak_Synchronize()
        return np.frombuffer(bytes(self._samples), dtype=np.int16).astype(np.float32) / np.float32(32_768), list(
            self._words
        )


def _spectrogram(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log magnitudes [frames, bins] of a 16 kHz waveform, one frame per `_HOP` samples."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (200, 200)), 400)[::_HOP]
    return np.log(np.abs(np.fft.rfft(frames * np.hanning(400))) + 0.05).astype(np.float32)


def locate(phrase: NDArray[np.float32], name: NDArray[np.float32], about: float) -> float:
    """The start of a name in a phrase, found by matching spectrograms.

    The word events of espeak-ng are too early or too late, depending on the word's first sound; matching the name
    spoken alone is more accurate.

    Args:
        phrase: waveform, 16 kHz.
        name: the name spoken alone by the same voice, without leading silence, 16 kHz.
        about: where the name is expected, in seconds; the search range is 0.12 seconds to either side.

    Returns:
        The start of the name in seconds.
    """
    whole, part = _spectrogram(phrase), _spectrogram(name)[: int(0.3 * SAMPLE_RATE / _HOP)]
    low = max(0, round((about - 0.12) * SAMPLE_RATE / _HOP))
    high = min(round((about + 0.12) * SAMPLE_RATE / _HOP), len(whole) - 1)
    # near the end of the phrase, less than the name may be left
    whole = np.pad(whole, ((0, len(part)), (0, 0)), mode="edge")
    costs = [float(np.square(whole[k : k + len(part)] - part).mean()) for k in range(low, high + 1)]
    return (low + int(np.argmin(costs))) * _HOP / SAMPLE_RATE


def _phrase(espeak: _Espeak, voice: _Voice, template: str, name: str) -> tuple[NDArray[np.float32], float, float]:
    """A phrase at 16 kHz without silence at its ends, and the start and end of the name in it, in seconds."""
    from scipy.signal import resample_poly

    text = template.format(name)
    wave, words = espeak.speak(voice, text)
    position = text.index(name, template.index("{}"))
    begin = next(time for place, time in words if place == position)
    # every template ends with the name, so the name ends with the sound
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
    first, last = loud[0] / espeak.sample_rate, loud[-1] / espeak.sample_rate
    lead, tail = max(0.0, first - 0.03), min(wave.size / espeak.sample_rate, last + 0.05)
    cut = wave[int(lead * espeak.sample_rate) : int(tail * espeak.sample_rate)]
    resampled = resample_poly(cut, SAMPLE_RATE // 50, espeak.sample_rate // 50)
    return (
        (0.7 * resampled / np.abs(resampled).max()).astype(np.float32),
        max(begin, first) - lead,
        last - lead,
    )


def build(folder: Path) -> None:
    """Writes one Opus file per voice and `index.json` to `folder`, replacing them.

    A training voice says the plain name and three training phrases, which differ from voice to voice; a held-out voice
    says the held-out phrases. espeak-ng varies its voices at random, so a rebuilt bundle sounds alike but is not
    identical. For each split and voice the index has [class, phrase, start, end, word_start, word_end]: the phrase's
    times in the file and the name's times in the phrase, in seconds.
    """
    import soundfile

    espeak = _Espeak()
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[Split, list[dict[str, object]]] = {"train": [], "heldout": []}
    plan: list[tuple[Split, _Voice, tuple[str, ...]]] = []
    for k, voice in enumerate(TRAIN_VOICES):
        chosen = tuple(TRAIN_PHRASES[(3 * k + j) % len(TRAIN_PHRASES)] for j in range(3))
        plan.append(("train", voice, ("{}", *chosen)))
    plan += [("heldout", voice, HELDOUT_PHRASES) for voice in HELDOUT_VOICES]
    for split, voice, templates in tqdm(plan, desc="voices"):
        label = f"{voice.accent}_{voice.variant}"
        pieces: list[NDArray[np.float32]] = []
        phrases: list[list[object]] = []
        position = 0
        for object_class, properties in enumerate(CLASSES):
            alone, onset, _ = _phrase(espeak, voice, "{}", properties.name)
            alone = alone[round(onset * SAMPLE_RATE) :]
            for template in templates:
                wave, word_start, word_end = _phrase(espeak, voice, template, properties.name)
                if template != "{}":
                    word_start = locate(wave, alone, word_start)
                start, position = position, position + wave.size
                times = [start / SAMPLE_RATE, position / SAMPLE_RATE, word_start, word_end]
                phrases.append([object_class, template.format(properties.name), *(round(t, 4) for t in times)])
                gap = np.zeros(int(_GAP * SAMPLE_RATE), dtype=np.float32)
                pieces += [wave, gap]
                position += gap.size
        path = folder / f"{label}.opus"
        soundfile.write(path, np.concatenate(pieces), SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=0.97)
        index[split].append({"voice": label, "phrases": phrases})
    text = json.dumps(index, separators=(",", ":")).replace("{", "\n{").replace("[[", "[\n[").replace("],[", "],\n[")
    (folder / "index.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(VOICES)
