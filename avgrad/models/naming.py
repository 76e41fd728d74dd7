"""Names for sounds: which of many labels fits a sound best (zero-shot, by the text tower)."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from avgrad.encoders.text import BATCH, check_texts
from avgrad.errors import InputError, PromptError
from avgrad.media import Audio, open_audio

if TYPE_CHECKING:
    SoundSource = str | os.PathLike[str] | bytes | tuple[Tensor | np.ndarray[Any, Any], int]


class SoundName(NamedTuple):
    """A name for a sound.

    Attributes:
        label: the name.
        probability: that it is this one of all labels, in [0, 1].
    """

    label: str
    probability: float


@cache
def sound_names() -> tuple[str, ...]:
    """The built-in names of everyday sounds."""
    lines = Path(__file__).with_name("sound_names.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


class KeptLabels:
    """Embeddings of the labels that were asked for last, kept while the model's weights stay."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[str, ...], Tensor] | None = None

    def __call__(self, encode: Callable[[Sequence[str]], Tensor], labels: Sequence[str]) -> Tensor:
        """The labels' embeddings `[N, D]`, float32, on the CPU.

        Args:
            encode: the model's, texts to embeddings.
            labels: N labels.
        """
        key, first = tuple(labels), encode(labels[:1]).cpu()
        # the first one is always encoded again: it shows whether other weights were loaded
        kept = self._kept
        if kept is None or kept[0] != key or not torch.allclose(kept[1][:1], first, rtol=0, atol=1e-4):
            parts = [encode(labels[start : start + BATCH]).cpu() for start in range(0, len(labels), BATCH)]
            self._kept = kept = key, torch.cat(parts).float()
        return kept[1]


class NamesSounds(ABC):
    """What models with a sound and a text tower that were trained together share."""

    def encode_text_for_sounds(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings `[P, D]` of texts in the space in which they are compared with sounds."""
        return self.encode_text(texts)  # type: ignore[attr-defined,no-any-return]

    @property
    @abstractmethod
    def naming_scale(self) -> float:
        """The learned scale of the cosines of texts and sounds: their softmax is over `scale * cosine`."""

    def knows(self, text: str) -> bool:
        """Whether all words of a text are in the model's vocabulary."""
        return True

    def describe(
        self, sound: SoundSource | Audio, labels: Sequence[str] | None = None, top: int = 5
    ) -> list[SoundName]:
        """The names that fit a sound best.

        The probability is the softmax over all labels of the cosines, times the model's own learned scale. It tells how
        much better a name fits than the other labels: some label always fits best, also where none is right.

        Args:
            sound: a path, a file's bytes, a waveform `[channels, samples]` with its sample rate, or an open sound.
            labels: names to choose from; None for the built-in names of everyday sounds, as far as the model knows
                their words.
            top: number of names, at least 1.

        Returns:
            At most `top` names, the most probable first.

        Raises:
            MediaError: the sound cannot be read.
            PromptError: there are no labels, one is empty, or one is there twice.
            InputError: `top` is less than 1.
            CheckpointError: the model was loaded without its audio or its text tower.

        Example:
            >>> import avgrad
            >>> avgrad.load("mini").describe("bark.wav", top=2)  # doctest: +SKIP
            [SoundName(label='dog', probability=0.99...), SoundName(label='frog', probability=0.00...)]
        """
        try:
            count = operator.index(top)
        except TypeError:
            count = 0
        if count < 1:
            raise InputError(f"top={top!r} is not an integer of at least 1")
        names = [name for name in sound_names() if self.knows(name)] if labels is None else check_texts(labels)
        if not names:
            raise PromptError("labels are empty; give at least one name")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise PromptError(f"the label {twice!r} is given twice; each may be given once")
        if isinstance(sound, Audio):
            embedding = self.encode_sound(sound)  # type: ignore[attr-defined]
        else:
            with open_audio(sound) as opened:
                embedding = self.encode_sound(opened)  # type: ignore[attr-defined]
        kept: KeptLabels = self.__dict__.setdefault("_names", KeptLabels())
        cosines = kept(self.encode_text_for_sounds, names) @ embedding.cpu()
        probabilities = torch.softmax(self.naming_scale * cosines.double(), dim=0)
        order = probabilities.argsort(descending=True, stable=True)[:count].tolist()
        return [SoundName(names[place], float(probabilities[place])) for place in order]
