"""VGGSound-Duet: two sound sources mixed into one sound (Mo and Tian, CVPR 2023), by the rule of AVGN's validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from avgrad.errors import MediaError
from avgrad.media import Audio, open_audio
from eval.metrics import sound_source as ss
from eval.metrics.prompted_segmentation import score_class
from eval.reading import read_records, read_rows
from eval.sound_source import SoundItem, SoundSource, checked_base_name, checked_boxes, checked_class
from eval.store import Measures
from eval.task import Array, Case, DataError, Inputs, Resampler, Row, task

SECONDS = 5.0  # of each sound, from its middle
LEVEL = 0.3  # cIoU above which a source is localized


@dataclass(frozen=True)
class DuetItem(SoundItem):
    """A source of a mixture.

    Attributes:
        other: path of the other source's sound within the data set.
        place: of the source in its pair, 0 or 1.
    """

    other: str
    place: int


@task("vggsound-duet")
class VggSoundDuet(SoundSource):
    """VGGSound-Duet: where in each of two video frames is its own source of the mixture of their sounds?

    AVGN is told the class of the source that it looks for; here the prompt is the mixture alone. The figures are means
    over the two places of a pair, as there. cIoU counts as localized above 0.3, and a mask is the half of the pixels
    with the highest values. PIAP is the mean average precision of the pixels; AVGN's code swaps the arguments of its
    average precision (`piap_as_published`), and its CAP leaves out the first step of recall (`cap_as_published`).
    """

    measures = "cIoU@0.3, AUC, CAP and PIAP of each of two sources of a mixture"
    source = "https://github.com/stoneMo/AVGN (list in its metadata/; boxes and videos as for vggss)"
    layout = """metadata/vggsound_duet_test.csv (ID,class,ID,class; no header)
metadata/vggss.json (file, class, bbox as fractions)
frames/ID.jpg
audio/ID.wav"""
    rule = ss.RULES["avgn"]
    columns: ClassVar[Mapping[str, str]] = {"ciou": "cIoU@0.3", "auc": "AUC", "cap": "CAP", "piap": "PIAP"}
    item_type = DuetItem

    def rows(self) -> list[list[str]]:
        """The pairs."""
        records = read_records(self.root / "metadata" / "vggss.json")
        self._boxes = {str(record.get("file")): record.get("bbox") for record in records}
        return read_rows(self.root / "metadata" / "vggsound_duet_test.csv")

    def numbered_rows(self) -> Iterator[tuple[int, Any]]:
        """Each row twice, once for each of its sources."""
        for number, row in super().numbered_rows():
            for place in (0, 1):
                yield number, (row, place)

    def item(self, number: int, row: Any) -> DuetItem:
        """A source of a pair; both belong to the first one's image in the bootstrap."""
        fields, place = row
        if len(fields) != 4:
            raise DataError(f"the row has {len(fields)} fields; ID,class,ID,class are expected")
        names = [checked_base_name("the id", name) for name in fields[::2]]
        own, other = names[place], names[1 - place]
        if own not in self._boxes:
            raise DataError(f"vggss.json has no record of {own}")
        boxes = checked_boxes(f"bbox of {own}", self._boxes[own], ss.SIDE)
        return DuetItem(
            row=number,
            image=names[0],
            file=f"frames/{own}.jpg",
            audio=f"audio/{own}.wav",
            class_name=checked_class(fields[2 * place + 1]),
            boxes=(boxes,),
            other=f"audio/{other}.wav",
            place=place,
        )

    def _paths(self, item: Any) -> list[Path]:
        return [*super()._paths(item), self.root / item.other]

    def load(self, item: Any, inputs: Inputs) -> Case:
        """Load a frame and the mixture."""
        sound, paths = inputs.sound, self._paths(item)
        try:
            square = self._square(item, inputs.image.resampling)
            parts = []
            for path in paths[1:] if item.place == 0 else paths[:0:-1]:  # the same sum for both sources
                with open_audio(path) as audio:
                    parts.append(middle(audio, sound.sample_rate))
            mixture = sound(open_audio((torch.stack(parts).sum(0), sound.sample_rate), name="the mixture"))
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths))
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        return Case(inputs.image(square), [mixture], {"truth": item.truth}, digest.digest())

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """cIoU, confidence and both pixel-wise average precisions of each method, and its raw map for the report."""
        measured: dict[str, Array] = {}
        truth = case.truth["truth"]
        for name, raw in maps.items():
            large = ss.upsample(raw[:1], self.rule)[0]
            mask = ss.median_mask(ss.normalized(large, self.rule), self.rule)
            precision = score_class(large[None], truth[None]).average_precision
            scores = [ss.ciou(mask, truth), ss.confidence(large), precision, ss.piap_as_published(mask, truth)]
            measured[f"score {name}"] = np.array(scores)
            measured[f"map {name}"] = raw[0]
        return measured

    @classmethod
    def _row(cls, measures: Measures, method: str, variant: Mapping[str, str]) -> Row:
        return Row(method, variant, cls.figures(measures, method, variant))

    @classmethod
    def figures(cls, measures: Measures, method: str, variant: Mapping[str, str]) -> dict[str, float]:
        """The figures of a method."""
        return _figures(measures.take(f"score {method}"), measures.field("place"))

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Ranks the drawn pairs anew for each draw."""
        pairs, _ = measures.groups("image")
        scores, places = measures.take(f"score {row.method}"), measures.field("place")

        def figures(weights: Array) -> dict[str, Array]:
            draws = []
            for own in weights[:, pairs].astype(int):
                drawn = np.repeat(np.arange(len(pairs)), own)
                draws.append(_figures(scores[drawn], places[drawn], with_published=False))
            return {name: np.array([draw[name] for draw in draws]) for name in cls.columns}

        return figures


def _figures(scores: Array, places: Array, with_published: bool = True) -> dict[str, float]:
    """The means over both places of the figures of the items at each.

    Args:
        scores: cIoU, confidence and both average precisions of each item, `[N, 4]`.
        places: of the items in their pairs, `[N]`.
        with_published: whether to compute the `..._as_published` figures, too.
    """
    found = []
    for place in np.unique(places):
        ciou, confidence, precision, swapped = scores[places == place].T
        arguments = ciou, confidence, np.zeros(len(ciou), dtype=bool), LEVEL
        figures = {
            "ciou": float((ciou > LEVEL).mean()),
            "auc": ss.success_auc(ciou),
            "cap": ss.localization_ap(*arguments),
            "piap": float(np.nanmean(precision)) if np.isfinite(precision).any() else float("nan"),
        }
        if with_published:
            figures["cap_as_published"] = ss.localization_ap_as_published(*arguments)
            figures["piap_as_published"] = float(swapped.mean())
        found.append(figures)
    return {name: float(np.mean([figures[name] for figures in found])) for name in found[0]}


def middle(audio: Audio, sample_rate: int) -> Tensor:
    """Five seconds from the middle of a sound, as mono; a shorter sound is repeated.

    Args:
        audio: an open sound.
        sample_rate: of the result.

    Returns:
        float32 `[samples]`.
    """
    from torchaudio.functional import resample

    start = max(round((audio.duration - SECONDS) / 2 * audio.sample_rate), 0)
    stop = min(start + round(SECONDS * audio.sample_rate), audio.num_frames)
    mono = audio.read(start, stop).clip(-1, 1).mean(0)
    sound: Tensor = resample(mono, audio.sample_rate, sample_rate)
    length = round(SECONDS * sample_rate)
    return sound.repeat(-(-length // len(sound)))[:length]
