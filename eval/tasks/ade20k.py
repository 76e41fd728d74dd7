"""ADE20K Sound- and Speech-Prompted of DenseAV (Hamilton et al., CVPR 2024).

prompted_segmentation.csv        one row per prompt
frames/<image_location>          images
annotations/<image_location, with .jpg -> _seg.png>   label maps: class id = (R // 10) * 256 + G
audio/<base name of vggsound_file or speech_prompt_file>
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from avgrad.encoders.image import center_crop
from avgrad.errors import MediaError
from avgrad.media import open_audio
from avgrad.models.devices import cpu_threads
from avgrad.scenes.layouts.ade20k import decode_annotation
from eval.metrics.prompted_segmentation import (
    NORMALIZATIONS,
    RECALL_LEVELS,
    ClassScore,
    Normalization,
    SegmentationScore,
    heatmap_parts,
    normalized_heatmaps,
    score_parts,
)
from eval.metrics.resampling import ClassCounts, mean_over_classes
from eval.reading import (
    MISSING,
    as_stored,
    check_rows,
    checked_name,
    is_text,
    need_columns,
    parse_number,
    read_table,
    shown,
    time_span,
)
from eval.store import Measures, unpack_masks
from eval.task import (
    Array,
    Case,
    DataError,
    Example,
    Inputs,
    Item,
    Problem,
    Published,
    Resampler,
    Row,
    Task,
    image_or_blank,
    spread,
    task,
)

CSV_NAME = "prompted_segmentation.csv"
NAME_COLUMNS = ("class_name", "ade_class_name")
ITEMS_AT_ONCE = 1024  # whose raw maps and packed masks are in memory
MAX_CLASSES = 26 * 256  # that an annotation can encode
# "Advanced" adds this much to the time of the word on each side.
MARGIN_SECONDS = 0.2


@dataclass(frozen=True)
class Ade20kItem(Item):
    """An image and a prompt for one class in it.

    Attributes:
        class_id: the class.
        class_name: its name.
        prompt: name of the prompt's file.
        span: begin and end in seconds of the spoken word, or None.
    """

    class_id: int
    class_name: str
    prompt: str
    span: tuple[float, float] | None = None


class Ade20k(Task):
    """What both benchmarks share.

    Attributes:
        folder: name of the data set's folder.
        prompt_column: of the table.
        timings: the parts of a prompt that are used, each for a heatmap of its own.

    Args:
        root: the folder that holds `prompted_segmentation.csv`, or the one around it.
        limit: number of items, the first ones; None for all.

    Raises:
        DataError: the table is missing or cannot be read, lacks a column or has no row for this prompt.
    """

    measures = "mAP and mIoU over classes of heatmaps for prompts of objects in scenes"
    modalities = ("audio",)
    columns: ClassVar[Mapping[str, str]] = {"mean_average_precision": "mAP", "mean_iou": "mIoU"}
    curve_axes = ("recall", "precision")
    folder: ClassVar[str]
    prompt_column: ClassVar[str]
    timings: ClassVar[tuple[str, ...]]
    items: list[Ade20kItem]
    problems: list[Problem]

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        self.root = Path(root)
        table = self.root / CSV_NAME
        try:
            if not table.exists() and (self.root / self.folder / CSV_NAME).exists():
                self.root /= self.folder
                table = self.root / CSV_NAME
            content = table.read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"{root} holds no {CSV_NAME}; the folder of {self.folder} or the one around it is expected"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{shown(str(table))} cannot be read ({error}); a CSV table is expected") from None
        columns, rows = read_table(table, content)
        column = self.prompt_column
        timing = ["timing"] if "advanced" in self.timings else []
        need_columns(table, columns, ["image_location", "ade_class_id", column, *timing])
        own = (
            (number, row)
            for number, row in enumerate(rows, start=1)
            if row[column] not in MISSING and parse_number(row["ade_class_id"]) != 0
        )
        self.items, self.problems, self.num_rows, self.fingerprint = check_rows(
            self.name, table, own, self._item, self._paths, limit, keep_duplicates=True
        )

    def _item(self, number: int, row: Mapping[str, str]) -> Ade20kItem:
        column = self.prompt_column
        image = checked_name("image_location", row["image_location"].strip())
        prompt = checked_name(column, row[column].strip().rsplit("/", 1)[-1])
        if not image.endswith(".jpg"):
            raise DataError(f"image_location is {shown(image)}; a name that ends in .jpg is expected")
        identity = parse_number(row["ade_class_id"])
        if not identity.is_integer() or not 0 <= identity < MAX_CLASSES:
            raise DataError(
                f"ade_class_id is {shown(row['ade_class_id'])}; a whole number from 0 to {MAX_CLASSES - 1} is expected"
            )
        name = next((row[key] for key in NAME_COLUMNS if row.get(key)), str(int(identity)))
        if not is_text(name):
            raise DataError(f"the class's name is {shown(name)}; text in UTF-8 is expected")
        span = time_span(row["timing"]) if "advanced" in self.timings else None
        return Ade20kItem(number, image, int(identity), name, prompt, span)

    def _paths(self, item: Ade20kItem) -> tuple[Path, Path, Path]:
        labels = item.image.removesuffix(".jpg") + "_seg.png"
        return (
            self.image_path(item.image),
            self.root / "annotations" / labels,
            self.root / "audio" / item.prompt,
        )

    def image_path(self, image: str) -> Path:
        """The path of an image."""
        return self.root / "frames" / image

    def image(self, image: str, resampling: str = "bicubic") -> Image.Image:
        """An image as it is evaluated: 224 x 224, RGB.

        Raises:
            MediaError: it cannot be read.
        """
        whole = as_stored(self.image_path(image))
        return center_crop(whole, self.side, resampling)

    def load(self, item: Ade20kItem, inputs: Inputs) -> Case:
        """Load an item.

        For a model with another input size, the square of 224 pixels is resized to it, so that all models see the same
        part of the image.

        Raises:
            DataError: one of its files cannot be read, or image and label map differ in size.
        """
        image_path, labels_path, audio_path = self._paths(item)
        try:
            image, labels = as_stored(image_path), as_stored(labels_path)
            if image.size != labels.size:
                raise DataError(
                    f"{image_path.name} has {image.width} x {image.height} pixels and {labels_path.name} "
                    f"{labels.width} x {labels.height}; the same size is expected"
                )
            with open_audio(audio_path) as audio:
                clips = [inputs.sound(audio)]
                if item.span is not None:
                    begin, end = item.span
                    bounds = max(begin - MARGIN_SECONDS, 0.0), min(end + MARGIN_SECONDS, audio.duration)
                    clips.append(inputs.sound(audio, bounds))
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in (image_path, labels_path, audio_path)))
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        square = center_crop(image, self.side, inputs.image.resampling)
        mask = decode_annotation(np.asarray(center_crop(labels, self.side, "nearest"))) == item.class_id
        problems: list[tuple[Any, str]] = []
        if not mask.any():  # it counts, as in the original: a heatmap can be wrong about it
            name = f"{item.class_name} (class {item.class_id})"
            problems.append(("no pixels", f"{item.image} shows no {name} in the part that is evaluated"))
        return Case(inputs.image(square), clips, {"mask": mask}, digest.digest(), problems)

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """The mask, eight pixels to a byte, and the raw maps: average precision needs all pixels of a class."""
        return {"mask": np.packbits(case.truth["mask"]), **{f"map {name}": values for name, values in maps.items()}}

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row per method, timing and normalization; full-size heatmaps exist for a few images per core at a time."""
        members, names = cls._members(measures), _class_names(measures)
        found: dict[tuple[str, str, Normalization], dict[int, ClassScore]] = {}
        with cpu_threads(1), ThreadPoolExecutor(os.cpu_count()) as pool:
            for method in measures.all_methods:
                bounds = cls._bounds(measures, method)
                for classes in _portions(members):
                    # maps and masks of several classes are read together, which opens each batch's file once
                    chosen = np.concatenate([members[class_id] for class_id in classes])
                    raw, masks = measures.take(f"map {method}", chosen), measures.take("mask", chosen)
                    stops = np.cumsum([len(members[class_id]) for class_id in classes]).tolist()
                    own = [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
                    for place, timing in enumerate(cls.timings):
                        for normalization in NORMALIZATIONS:
                            parts = [
                                heatmap_parts(raw[o, place], masks[o], normalization, cls.side, *bounds[place])
                                for o in own
                            ]
                            scores = dict(zip(classes, pool.map(score_parts, parts), strict=True))
                            found.setdefault((method, timing, normalization), {}).update(scores)
        return [cls._row(*key, SegmentationScore(scores), names) for key, scores in found.items()]

    @classmethod
    def _row(cls, method: str, timing: str, normalization: str, score: SegmentationScore, names: dict[int, str]) -> Row:
        return Row(
            method=method,
            variant={"timing": timing, "normalization": normalization},
            figures={
                "mean_average_precision": score.mean_average_precision,
                "mean_iou": score.mean_iou,
                "mean_average_precision_as_published": score.mean_average_precision_as_published,
                "mean_iou_as_published": score.mean_iou_as_published,
            },
            details=[
                {
                    "class_id": class_id,
                    "class_name": names[class_id],
                    "images": found.num_images,
                    "average_precision": found.average_precision,
                    "iou": found.iou,
                    "threshold": found.threshold,
                }
                for class_id, found in score.classes.items()
            ],
            curve=np.stack([RECALL_LEVELS, score.precision]),
        )

    @classmethod
    def _members(cls, measures: Measures) -> dict[int, Array]:
        """Positions of the items of each class."""
        class_ids = measures.field("class_id")
        return {int(c): np.flatnonzero(class_ids == c) for c in np.unique(class_ids)}

    @classmethod
    def _bounds(cls, measures: Measures, method: str) -> Array:
        """The smallest and the largest raw value of each timing, `[timings, 2]`."""
        parts = [(m.min((0, 2, 3)), m.max((0, 2, 3))) for m in measures.stream(f"map {method}")]
        lows, highs = (np.stack(values) for values in zip(*parts, strict=True))
        return np.stack([lows.min(0), highs.max(0)], axis=1).astype(float)

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Exact but for average precision, which comes from binned scores (`eval.metrics.resampling`)."""
        images, _ = measures.groups("image")
        members = cls._members(measures)
        place, counts = cls.timings.index(row.variant["timing"]), []
        normalization: Any = row.variant["normalization"]
        bounds = cls._bounds(measures, row.method)[place]
        for chosen in members.values():
            raw = measures.take(f"map {row.method}", chosen)[:, place]
            parts = heatmap_parts(raw, measures.take("mask", chosen), normalization, cls.side, *bounds)
            maps, masks = (np.concatenate(arrays) for arrays in zip(*parts(), strict=True))
            counts.append(ClassCounts.of(maps, masks, images[chosen]))

        def figures(weights: Array) -> dict[str, Array]:
            ap, iou = zip(*(count.figures(weights) for count in counts), strict=True)
            return {"mean_average_precision": mean_over_classes(ap), "mean_iou": mean_over_classes(iou)}

        return figures

    @classmethod
    def problems_of(cls, measures: Measures) -> list[Problem]:
        """Rows of classes none of whose images has a pixel of them."""
        found = []
        filled = np.concatenate([masks.any(axis=1) for masks in measures.stream("mask")])
        for class_id, chosen in cls._members(measures).items():
            if not filled[chosen].any():
                for item in (measures.items[int(position)] for position in chosen):
                    message = f"{item['class_name']} (class {class_id}) is left out of the means"
                    found.append(Problem(item["row"], "class without pixels", message))
        return found

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """The first image of some classes, from the best to the worst."""
        classes = [part for part in row.details if not np.isnan(part["average_precision"])]
        members = self._members(measures)
        for place in spread(np.array([part["average_precision"] for part in classes])):
            chosen = members[classes[place]["class_id"]][:1]
            name = str(measures.items[int(chosen[0])]["image"])
            image = image_or_blank(partial(self.image, name), self.side)
            maps = {
                method: normalized_heatmaps(measures.take(f"map {method}", chosen)[:, 0], "image", self.side, 0.0, 1.0)[
                    0
                ].numpy()
                for method in measures.methods
            }
            mask = unpack_masks(measures.take("mask", chosen), self.side)[0]
            yield Example(str(classes[place]["class_name"]), image, mask, maps)


_LEGRAD = "Bousselham et al., ICCV 2025"
_TACO = "arXiv 2412.01488"


def _published(
    name: str, mean_average_precision: float, mean_iou: float, source: str, masks: bool = False
) -> Published:
    figures = {"mean_average_precision": mean_average_precision, "mean_iou": mean_iou}
    return Published(name, figures, source, masks)


@task("ade20k-sound")
class Ade20kSound(Ade20k):
    """ADE20K Sound-Prompted."""

    source = "https://github.com/mhamilton723/DenseAV (ADE20KSoundPrompted.zip; images of ADE20K, sounds of VGGSound)"
    layout = """prompted_segmentation.csv (image_location, vggsound_file, ade_class_id, class_name)
frames/*.jpg
annotations/*_seg.png
audio/*"""
    folder = "ADE20KSoundPrompted"
    prompt_column = "vggsound_file"
    timings = ("basic",)
    published = (
        _published("DenseAV", 32.7, 24.2, _LEGRAD),
        _published("ImageBind + LeGrad", 48.0, 38.9, _LEGRAD),
        _published("TACO, maps alone", 35.75, 27.74, _TACO),
        _published("TACO, with decoder", 60.01, 51.57, _TACO, masks=True),
    )


@task("ade20k-speech")
class Ade20kSpeech(Ade20k):
    """ADE20K Speech-Prompted."""

    source = "https://github.com/mhamilton723/DenseAV (ADE20KSpeechPrompted.zip; images of ADE20K)"
    layout = """prompted_segmentation.csv (image_location, speech_prompt_file, ade_class_id, timing, class_name)
frames/*.jpg
annotations/*_seg.png
audio/*"""
    folder = "ADE20KSpeechPrompted"
    prompt_column = "speech_prompt_file"
    timings = ("basic", "advanced")
    published = (
        _published("DenseAV", 48.7, 36.8, _LEGRAD),
        _published("ImageBind + LeGrad", 23.3, 21.8, _LEGRAD),
    )


def _portions(members: Mapping[int, Array]) -> Iterator[list[int]]:
    """The classes, as many at a time as have `ITEMS_AT_ONCE` items together, but at least one."""
    classes: list[int] = []
    count = 0
    for class_id, chosen in members.items():
        if classes and count + len(chosen) > ITEMS_AT_ONCE:
            yield classes
            classes, count = [], 0
        classes.append(class_id)
        count += len(chosen)
    yield classes


def _class_names(measures: Measures) -> dict[int, str]:
    """The name of each class by its id."""
    return {int(item["class_id"]): str(item["class_name"]) for item in measures.items}
