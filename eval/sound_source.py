"""What the benchmarks of sound source localization share: an image, its sound, and boxes on a square of 224 pixels."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from avgrad.errors import MediaError
from avgrad.media import load_image, open_audio
from eval.metrics import sound_source as ss
from eval.reading import check_rows, checked_name, is_text, shown
from eval.store import Measures
from eval.task import Array, Case, DataError, Example, Inputs, Resampler, Row, Task, image_or_blank, spread
from eval.task import Item as BaseItem


@dataclass(frozen=True)
class SoundItem(BaseItem):
    """An image with a sound.

    Attributes:
        file: path of the image within the data set.
        audio: path of the sound within the data set.
        class_name: what sounds; empty if unknown.
        boxes: of each annotator, xmin, ymin, xmax, ymax in pixels of the square; none if nothing in the image sounds.
    """

    file: str
    audio: str
    class_name: str
    boxes: tuple[tuple[tuple[float, float, float, float], ...], ...]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> SoundItem:
        """The item whose fields were kept with the measures."""
        return cls(**{**fields, "boxes": tuple(map(tuple, fields["boxes"]))})

    @property
    def truth(self) -> Array:
        """The ground truth `[224, 224]` in [0, 1]: the union of one annotator's boxes, or the consensus of several."""
        if len(self.boxes) == 1:
            return ss.box_mask(np.array(self.boxes[0]))
        return ss.consensus([np.array(boxes) for boxes in self.boxes], canvas=ss.SIDE)


class SoundSource(Task):
    """A benchmark of sound source localization.

    The whole image is resized to a square, as its boxes are. A mask is the half of the pixels with the highest values,
    or as many pixels as the ground truth has ("adaptive"); both by the rule of the benchmark's reference.

    Attributes:
        rule: how maps become masks.
        adaptive_rule: the same for adaptive masks (SSL alignment).
        item_type: of its items.
    """

    modalities = ("audio",)
    columns: ClassVar[Mapping[str, str]] = {
        "ciou": "cIoU@0.5",
        "auc": "AUC",
        "ciou_adaptive": "adaptive cIoU@0.5",
        "auc_adaptive": "adaptive AUC",
    }
    rule: ClassVar[ss.Rule] = ss.RULES["ez-vsl"]
    adaptive_rule: ClassVar[ss.Rule] = ss.RULES["ssl-alignment"]
    item_type: ClassVar[type[SoundItem]] = SoundItem
    items: list[SoundItem]

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        self.root = Path(root)
        self.items, self.problems, self.num_rows, self.fingerprint = check_rows(
            self.name, self.root, self.numbered_rows(), self.item, self._paths, limit
        )

    def _paths(self, item: SoundItem) -> list[Path]:
        return [self.root / name for name in (item.file, item.audio)]

    @abstractmethod
    def rows(self) -> Sequence[Any]:
        """The rows of the benchmark's own list.

        Raises:
            DataError: it is missing or cannot be read.
        """

    def numbered_rows(self) -> Iterator[tuple[int, Any]]:
        """The number and the content of each item's row."""
        return iter(enumerate(self.rows(), start=1))

    @abstractmethod
    def item(self, number: int, row: Any) -> SoundItem:
        """An item of its row.

        Raises:
            DataError: the row cannot be used.
        """

    def load(self, item: SoundItem, inputs: Inputs) -> Case:
        """Load an item: the image resized to a square and the clips of its sound."""
        paths = self._paths(item)
        try:
            square = self._square(item, inputs.image.resampling)
            with open_audio(paths[1]) as audio:
                clips = inputs.sound(audio)
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths))
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        return Case(inputs.image(square), [clips], {"truth": item.truth}, digest.digest())

    def _square(self, item: SoundItem, resampling: str) -> Image.Image:
        image = load_image(self.root / item.file)
        return image.resize((self.side, self.side), Image.Resampling[resampling.upper()])

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """cIoU of both masks and the confidence of each method, and its raw map for the report."""
        measured: dict[str, Array] = {}
        for name, raw in maps.items():
            measured[f"score {name}"] = self._score(raw[:1], case.truth["truth"])
            measured[f"map {name}"] = raw[0]
        return measured

    def _score(self, raw: Array, truth: Array) -> Array:
        """cIoU of the median mask and of the adaptive one, and the confidence, `[3]`; `raw` is `[1, gh, gw]`."""
        large = ss.upsample(raw, self.rule)[0]
        median = ss.median_mask(ss.normalized(large, self.rule), self.rule)
        other = ss.upsample(raw, self.adaptive_rule)[0]
        adaptive = ss.adaptive_mask(ss.normalized(other, self.adaptive_rule), truth)
        return np.array([ss.ciou(median, truth), ss.ciou(adaptive, truth), ss.confidence(large)])

    @classmethod
    def variants(cls, measures: Measures) -> list[dict[str, str]]:
        """The variants of each method's row."""
        return [{}]

    @classmethod
    def scores(cls, measures: Measures, method: str, variant: Mapping[str, str]) -> Array:
        """cIoU, adaptive cIoU and confidence of each item, `[N, 3]`."""
        return measures.take(f"score {method}")

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each method and variant, with its success rate by class."""
        variants = cls.variants(measures)
        return [cls._row(measures, method, variant) for method in measures.all_methods for variant in variants]

    @classmethod
    def _row(cls, measures: Measures, method: str, variant: Mapping[str, str]) -> Row:
        median, adaptive, _ = cls.scores(measures, method, variant).T
        classes, first = measures.groups("class_name")
        names = {str(measures.items[int(position)]["class_name"]): group for group, position in enumerate(first)}
        return Row(
            method,
            variant,
            cls.figures(measures, method, variant),
            details=[
                {
                    "class_name": name,
                    "images": int((classes == group).sum()),
                    "ciou": ss.success_rate(median[classes == group]),
                    "ciou_adaptive": ss.success_rate(adaptive[classes == group]),
                }
                for name, group in sorted(names.items())
            ],
        )

    @classmethod
    def figures(cls, measures: Measures, method: str, variant: Mapping[str, str]) -> dict[str, float]:
        """The figures of a method."""
        median, adaptive, _ = cls.scores(measures, method, variant).T
        return {
            "ciou": ss.success_rate(median),
            "auc": ss.success_auc(median),
            "ciou_adaptive": ss.success_rate(adaptive),
            "auc_adaptive": ss.success_auc(adaptive),
        }

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Success rates and areas are means over items."""
        images, _ = measures.groups("image")
        median, adaptive, _ = cls.scores(measures, row.method, row.variant).T
        values = {
            "ciou": median >= 0.5,
            "auc": [ss.success_auc(np.array([value])) for value in median],
            "ciou_adaptive": adaptive >= 0.5,
            "auc_adaptive": [ss.success_auc(np.array([value])) for value in adaptive],
        }

        def figures(weights: Array) -> dict[str, Array]:
            own = weights[:, images]
            return {name: own @ np.asarray(value, dtype=float) / own.sum(axis=1) for name, value in values.items()}

        return figures

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """Items from the highest cIoU to the lowest."""
        for position in spread(self.scores(measures, row.method, row.variant)[:, 0]):
            item = self.item_type.of(measures.items[position])
            image = image_or_blank(partial(self._square, item, "bicubic"), self.side)
            chosen = np.array([position])
            maps = {
                name: ss.min_max(ss.upsample(measures.take(f"map {name}", chosen), self.rule)[0])
                for name in measures.methods
            }
            yield Example(item.class_name or item.file, image, item.truth > 0, maps)


# ------------------------------------------------------------------ checks of fields


def checked_boxes(field: str, values: Any, scale: float = 1.0) -> tuple[tuple[float, float, float, float], ...]:
    """Boxes from a file, scaled to pixels of the square.

    Args:
        field: for the message.
        values: `[[xmin, ymin, xmax, ymax], ...]`.
        scale: pixels of the square for a unit of the values.

    Raises:
        DataError: anything else.
    """
    try:
        boxes = np.array(values, dtype=np.float64).reshape(len(values), 4)
    except (TypeError, ValueError):
        boxes = np.full((1, 4), np.nan)
    if not np.isfinite(boxes).all():
        raise DataError(f"{field} is {shown(str(values))}; boxes [xmin, ymin, xmax, ymax] are expected")
    return tuple((left, top, right, bottom) for left, top, right, bottom in (scale * boxes).tolist())


def checked_class(text: Any) -> str:
    """A class's name from a file.

    Raises:
        DataError: it is no text.
    """
    if not isinstance(text, str) or not is_text(text):
        raise DataError(f"the class's name is {shown(str(text))}; text in UTF-8 is expected")
    return text


def checked_base_name(field: str, text: Any) -> str:
    """The last part of a path from a file.

    Raises:
        DataError: it is no usable file name.
    """
    if not isinstance(text, str):
        raise DataError(f"{field} is {shown(str(text))}; a file's name is expected")
    return checked_name(field, text.strip().rsplit("/", 1)[-1])
