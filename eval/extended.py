"""The extended protocol of SLAVC (Mo and Morgado, NeurIPS 2022): some images show nothing of what sounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from eval.metrics import sound_source as ss
from eval.reading import read_bytes, read_table
from eval.sound_source import SoundItem, SoundSource, checked_base_name
from eval.store import Measures
from eval.task import Array, DataError, Resampler, Row


class Extended(SoundSource):
    """Positives of another benchmark and negatives whose sound has no source in the image.

    The confidence of an item is the mean of the highest quarter of its raw map; a method is good at this if its maps
    are smaller where nothing sounds. A subclass names the other benchmark behind this class.

    Attributes:
        negatives: name of the list of negatives (video,audio,label).
    """

    measures = "AP, max-F1 and LocAcc where some images show no source of the sound"
    rule = ss.RULES["slavc"]
    columns: ClassVar[Mapping[str, str]] = {
        "average_precision": "AP",
        "max_f1": "max-F1",
        "localization_accuracy": "LocAcc",
    }
    negatives: ClassVar[str]

    def rows(self) -> list[Any]:
        """The rows of the positives, then those of the negatives."""
        positives: list[Any] = list(super().rows())  # type: ignore[safe-super]
        path = self.root / "metadata" / self.negatives
        columns, negatives = read_table(path, read_bytes(path))
        if not {"video", "audio"} <= set(columns):
            raise DataError(f"{path} has no columns video and audio")
        return [*positives, *negatives]

    def item(self, number: int, row: Any) -> SoundItem:
        """An item of its row; negatives have no boxes."""
        if not isinstance(row, dict):
            item: SoundItem = super().item(number, row)  # type: ignore[safe-super]
            return item
        video, audio = (checked_base_name(name, row[name]) for name in ("video", "audio"))
        return SoundItem(number, video, f"frames/{video}.jpg", f"audio/{audio}.wav", "", ())

    @classmethod
    def _arrays(cls, measures: Measures, method: str) -> tuple[Array, Array, Array]:
        """cIoU, confidence and whether an item is negative, `[N]` each."""
        values, _, confidences = measures.take(f"score {method}").T
        return (
            values,
            confidences,
            np.fromiter((not item["boxes"] for item in measures.items), dtype=bool, count=len(measures)),
        )

    @classmethod
    def figures(cls, measures: Measures, method: str, variant: Mapping[str, str]) -> dict[str, float]:
        """The figures of a method."""
        arrays = cls._arrays(measures, method)
        return {
            **cls._figures(*arrays),
            "average_precision_as_published": ss.localization_ap_as_published(*arrays),
            "max_f1_as_published": ss.max_f1_as_published(*arrays),
        }

    @classmethod
    def _figures(cls, values: Array, confidences: Array, negative: Array) -> dict[str, float]:
        return {
            "average_precision": ss.localization_ap(values, confidences, negative),
            "max_f1": ss.max_f1(values, confidences, negative),
            "localization_accuracy": ss.localization_accuracy(values, negative) if not negative.all() else float("nan"),
        }

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Ranks the drawn items anew for each draw."""
        images, _ = measures.groups("image")
        arrays = cls._arrays(measures, row.method)

        def figures(weights: Array) -> dict[str, Array]:
            draws = []
            for own in weights[:, images].astype(int):
                drawn = np.repeat(np.arange(len(images)), own)
                draws.append(cls._figures(*(array[drawn] for array in arrays)))
            return {name: np.array([draw[name] for draw in draws]) for name in cls.columns}

        return figures
