"""Negative audio (Juanola et al., vssl_eval): what a method marks for silence, for noise and for a sound off-screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from avgrad.errors import MediaError
from avgrad.media import open_audio
from eval.metrics import sound_source as ss
from eval.sound_source import SoundItem, SoundSource
from eval.store import Measures
from eval.task import Array, Case, DataError, Inputs, Resampler, Row

NEGATIVES = ("silence", "noise", "offscreen")


class NegativeAudio(SoundSource):
    """A benchmark with three more sounds per image that have no source in it.

    One threshold for all images and sounds, the third quartile of the largest values of the negatives' raw maps, makes
    masks of raw maps. The original's thresholds are constants of its models; and it upsamples positives and negatives
    in two ways, where these are all upsampled like its positives. The sound off-screen is that of the next item of
    another class.
    """

    measures = (
        "how little is marked for silence, noise and off-screen sounds, at a threshold at which sources are found"
    )
    rule = ss.RULES["ssl-alignment"]
    columns: ClassVar[Mapping[str, str]] = {
        "auc": "AUC",
        "auc_negative": "AUC_N",
        "f_auc": "F_AUC",
        **{f"auc_{name}": f"AUC_N {name}" for name in NEGATIVES},
    }

    def load(self, item: SoundItem, inputs: Inputs) -> Case:
        """Load an item with its own sound and the three negatives."""
        case, sound = super().load(item, inputs), inputs.sound
        place = self.items.index(item)
        others = [*self.items[place + 1 :], *self.items[:place]]
        offscreen = next((other for other in others if other.class_name != item.class_name), None)
        if offscreen is None:
            raise DataError(f"no other item is of another class than {item.file}; sounds of two classes are expected")
        try:
            with open_audio(self.root / item.audio) as audio:
                length = max(1, int(audio.duration * sound.sample_rate))
            with open_audio(self.root / offscreen.audio) as audio:
                other = sound(audio)
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        # silence, which `open_audio` refuses, is the same in all clips
        silence = sound.clip(torch.zeros(1, min(length, int(sound.clip_seconds * sound.sample_rate))))
        waveform = torch.randn(1, length, generator=torch.Generator().manual_seed(item.row)).numpy()
        noise = sound(open_audio((waveform, sound.sample_rate)))
        return replace(case, prompts=[*case.prompts, silence, noise, other])

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """What the other tasks keep, and the raw maps of all four sounds: their threshold is known at the end."""
        kept = {f"maps {name}": raw for name, raw in maps.items()}
        return {**super().measure(case, maps), **kept}

    @classmethod
    def _areas(cls, measures: Measures, method: str) -> Array:
        """Of each item the areas that `auc` and the three `auc_...` are means of, `[N, 4]`."""
        maxima = np.concatenate([m[:, 1:].max((-2, -1)) for m in measures.stream(f"maps {method}")])
        threshold = np.float32(np.percentile(maxima, 75))
        found = np.empty((len(measures), 1 + len(NEGATIVES)))
        items = iter(measures.items)
        for start, raw in _numbered(measures.stream(f"maps {method}", size=64)):
            for place, own in enumerate(raw):
                item = SoundItem.of(next(items))
                positive, *negatives = ss.upsample(own, cls.rule) > threshold
                value = ss.success_auc(np.nan_to_num([ss.ciou(positive, item.truth)]))
                shares = (np.array([ss.predicted_share(mask)]) for mask in negatives)
                found[start + place] = (value, *(ss.negative_auc(share) for share in shares))
        return found

    @classmethod
    def _figures(cls, means: Array) -> dict[str, Any]:
        """The figures of mean areas `[..., 4]`."""
        negative = means[..., 1:].mean(-1)
        total = means[..., 0] + negative
        f_auc = np.divide(2 * means[..., 0] * negative, total, out=np.zeros_like(total), where=total > 0)
        by_name = {f"auc_{name}": means[..., place] for place, name in enumerate(NEGATIVES, start=1)}
        return {"auc": means[..., 0], "auc_negative": negative, "f_auc": f_auc, **by_name}

    @classmethod
    def figures(cls, measures: Measures, method: str, variant: Mapping[str, str]) -> dict[str, float]:
        """The figures of a method."""
        return {name: float(value) for name, value in cls._figures(cls._areas(measures, method).mean(axis=0)).items()}

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Means over items, at the threshold of all of them."""
        images, _ = measures.groups("image")
        areas = cls._areas(measures, row.method)

        def figures(weights: Array) -> dict[str, Array]:
            own = weights[:, images]
            return cls._figures(own @ areas / own.sum(axis=1, keepdims=True))

        return figures


def _numbered(parts: Iterator[Array]) -> Iterator[tuple[int, Array]]:
    """Parts with the position of their first element."""
    start = 0
    for part in parts:
        yield start, part
        start += len(part)
