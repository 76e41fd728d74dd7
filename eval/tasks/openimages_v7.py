"""OpenImages V7's point labels: open-vocabulary localization by class names (LeGrad's Table 2)."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from scipy.sparse import csr_array

from avgrad.engine.attribute import min_max, upsample
from avgrad.errors import MediaError
from avgrad.media import load_image
from eval.encoder import TEMPLATE
from eval.metrics.points import point_counts, point_iou
from eval.reading import check_rows, checked_name, is_text, parse_number, read_rows, shown, stream_table
from eval.store import Measures
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

POINTS = "oidv7-val-annotations-point-labels.csv"
DESCRIPTIONS = "oidv7-class-descriptions.csv"
FOLDER = "validation"
MEANS = ("classes", "images")
FIGURES = ("p_miou", "p_miou_with_background")
ANSWERS = {"yes": 1, "no": 0}
MARK = 4  # pixels on each side of a point in the report
_LEGRAD = "Bousselham et al., ICCV 2025"


@dataclass(frozen=True)
class PointImage(Item):
    """An image with the classes that are in it.

    Attributes:
        classes: label and name of each class with a positive point.
        start, stop: of its points in `OpenImagesV7.points`.
    """

    classes: tuple[tuple[str, str], ...]
    start: int
    stop: int


@task("openimages-v7")
class OpenImagesV7(Task):
    """Point labels of OpenImages V7's validation images.

    The prompts of an image are the names of the classes with a point on them in it; the points beside them count, too,
    and points of which annotators are unsure do not. A heatmap, min-max normalized, predicts the points above one half.
    p-mIoU is of the objects, or the mean with that of the background; the LeGrad paper does not say which of them it
    reports. Counts are summed over all images of a class first (mean over classes), or each class of each image has an
    IoU of its own (mean over images). Images are resized to the model's square.

    Attributes:
        points: x, y, place of the class in its image and whether the point is positive, float64 `[n, 4]`, by image.

    Args:
        root: the folder that holds both lists.
        limit: number of items, the first ones; None for all.

    Raises:
        DataError: a list is missing or cannot be read, or no image can be used.
    """

    measures = "p-mIoU at labeled points of the classes in an image, by their names"
    source = "https://storage.googleapis.com/openimages/web (annotations CC BY 4.0; images listed as CC BY 2.0)"
    layout = f"""{POINTS} (ImageId, X, Y, Label, EstimatedYesNo, TextLabel)
{DESCRIPTIONS} (LabelName, DisplayName)
{FOLDER}/IMAGEID.jpg"""
    modalities = ("text",)
    columns: ClassVar[Mapping[str, str]] = {
        "p_miou": "p-mIoU",
        "p_miou_with_background": "p-mIoU with background",
    }
    published = (
        Published("LeGrad, ViT-B/16", {"p_miou": 48.38}, _LEGRAD),
        Published("LeGrad, ViT-L/14", {"p_miou": 47.69}, _LEGRAD),
        Published("LeGrad, ViT-H/14", {"p_miou": 46.51}, _LEGRAD),
        Published("LeGrad, SigLIP-B/16", {"p_miou": 25.40}, _LEGRAD),
    )
    items: list[PointImage]

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        self.root = Path(root)
        table = _PointTable(self.root)
        self.points = table.points
        self.items, problems, self.num_rows, digest = check_rows(
            self.name,
            self.root / POINTS,
            table.rows,
            lambda number, fields: PointImage(number, *fields),
            lambda item: [self._path(item.image)],
            limit,
        )
        self.problems = sorted([*table.problems, *problems], key=lambda problem: problem.row)
        self.fingerprint = hashlib.sha256(digest.encode() + self.points.tobytes()).hexdigest()
        self.most_classes = max(len(item.classes) for item in self.items)

    def _path(self, image: str) -> Path:
        return self.root / FOLDER / f"{image}.jpg"

    def _square(self, image: str, size: int, resampling: str) -> Image.Image:
        return load_image(self._path(image)).resize((size, size), Image.Resampling[resampling.upper()])

    def load(self, item: PointImage, inputs: Inputs) -> Case:
        """Load an image with its points."""
        try:
            square = self._square(item.image, inputs.image.size, inputs.image.resampling)
            content = self._path(item.image).read_bytes()
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        points = self.points[item.start : item.stop]
        prompts = [TEMPLATE.format(name) for _, name in item.classes]
        digest = hashlib.sha256(content + points.tobytes()).digest()
        return Case(inputs.image(square), prompts, {"points": points}, digest)

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """The counts of each class by each method, and the raw map of the first class for the report."""
        measured: dict[str, Array] = {}
        points = case.truth["points"]
        for name, raw in maps.items():
            counts = np.zeros((self.most_classes, 4), dtype=np.int64)
            for place, heatmap in enumerate(self._heatmaps(raw)):
                own = points[points[:, 2] == place]
                counts[place] = point_counts(heatmap, own[:, :2], own[:, 3] > 0)
            measured[f"counts {name}"] = counts
            measured[f"map {name}"] = raw[0]
        return measured

    @classmethod
    def _heatmaps(cls, raw: Array) -> Array:
        heatmaps: Array = min_max(upsample(torch.from_numpy(raw)[None], (cls.side, cls.side)))[0].numpy()
        return heatmaps

    @classmethod
    def _sums(cls, measures: Measures, method: str) -> tuple[dict[str, str], Array, Array, Array]:
        """The names of the classes by their labels; counts `[n, 4]` of each class of each image, and the positions of
        those images and classes `[n]`."""
        names: dict[str, str] = {}
        places: dict[str, int] = {}
        counts, images, classes = [], [], []
        items = iter(measures.items)
        for position, own in enumerate(row for part in measures.stream(f"counts {method}") for row in part):
            labels = next(items)["classes"]
            counts.append(own[: len(labels)])
            for label, name in labels:
                names[label] = name
                images.append(position)
                classes.append(places.setdefault(label, len(places)))
        return names, np.concatenate(counts), np.array(images), np.array(classes)

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each method and kind of mean."""
        rows = []
        for method in measures.all_methods:
            names, counts, _, classes = cls._sums(measures, method)
            sums = np.stack([np.bincount(classes, column) for column in counts.T], axis=1)
            by_class, by_pair = point_iou(sums), point_iou(counts)
            details = [
                {"class_name": name, "images": int(number), "iou": float(own[0]), "iou_with_background": float(own[1])}
                for name, number, own in zip(names.values(), np.bincount(classes), by_class, strict=True)
            ]
            for mean, values, parts in zip(MEANS, (by_class, by_pair), (details, ()), strict=True):
                figures = dict(zip(FIGURES, values.mean(axis=0).tolist(), strict=True))
                rows.append(Row(method, {"mean over": mean}, figures, parts))
        return rows

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Sums of counts over the drawn images, or means over their classes."""
        names, counts, images, classes = cls._sums(measures, row.method)
        shape = len(measures), len(names)
        columns = [csr_array((column, (images, classes)), shape) for column in counts.T]
        by_image = [np.bincount(images, values) for values in (*point_iou(counts).T, np.ones(len(images)))]

        def over_classes(weights: Array) -> Array:
            sums = np.stack([weights @ column for column in columns], axis=-1)
            mean: Array = np.nanmean(point_iou(sums), axis=1)  # of the classes that were drawn
            return mean

        def over_images(weights: Array) -> Array:
            *sums, count = (weights @ values for values in by_image)
            return np.stack(sums, axis=1) / count[:, None]

        function = over_classes if row.variant["mean over"] == "classes" else over_images

        def figures(weights: Array) -> dict[str, Array]:
            return dict(zip(FIGURES, function(weights).T, strict=True))

        return figures

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """The first class of images from the highest IoU to the lowest, with the points on it."""
        scores = [point_iou(part[:, 0])[:, 0] for part in measures.stream(f"counts {row.method}")]
        for position in spread(np.concatenate(scores)):
            fields = measures.items[position]
            image = image_or_blank(partial(self._square, fields["image"], self.side, "bicubic"), self.side)
            truth = np.zeros((self.side, self.side), dtype=bool)
            for x, y, place, positive in self.points[fields["start"] : fields["stop"]]:
                if place == 0 and positive:
                    left, top = int(x * self.side), int(y * self.side)
                    truth[max(top - MARK, 0) : top + MARK, max(left - MARK, 0) : left + MARK] = True
            chosen = np.array([position])
            maps = {name: self._heatmaps(measures.take(f"map {name}", chosen))[0] for name in measures.methods}
            yield Example(fields["classes"][0][1], image, truth, maps)


class _PointTable:
    """The points of all images, in the order of the images' first rows.

    Attributes:
        points: as `OpenImagesV7.points`.
        rows: for each image with a positive point the number of its first row and the fields of its item.
        problems: of rows that cannot be used.
    """

    def __init__(self, root: Path) -> None:
        self._names = {row[0]: row[1] for row in read_rows(root / DESCRIPTIONS) if len(row) > 1 and is_text(row[1])}
        self._images: dict[str, int] = {}
        self._labels: dict[tuple[str, str], int] = {}
        self.problems: list[Problem] = []
        numbers, found = array("q"), array("d")
        needed = ("ImageId", "X", "Y", "Label", "EstimatedYesNo", "TextLabel")
        for number, fields in stream_table(root / POINTS, needed):
            try:
                point = self._point(fields)
            except DataError as error:
                self.problems.append(Problem(number, "unreadable row", str(error)))
                continue
            if point is not None:
                numbers.append(number)
                found.extend(point)
        table, rows = self._without_duplicates(np.array(found).reshape(-1, 5), np.array(numbers))
        images, labels = list(self._images), list(self._labels)
        self.points, self.rows = np.empty((len(table), 4)), []
        starts = np.searchsorted(table[:, 0], np.arange(len(images) + 1))
        for image, (start, stop) in zip(images, pairwise(starts.tolist()), strict=True):
            own = table[start:stop]
            present = list(dict.fromkeys(own[own[:, 4] > 0, 1].tolist()))
            places = [present.index(label) if label in present else -1 for label in own[:, 1].tolist()]
            self.points[start:stop] = np.column_stack([own[:, 2:4], places, own[:, 4]])
            if present:
                classes = tuple(labels[int(label)] for label in present)
                self.rows.append((int(rows[start]), (image, classes, start, stop)))

    def _point(self, fields: list[str]) -> tuple[float, ...] | None:
        """The places of image and label in their lists, x, y and 1 for a positive point; None for unsure annotators."""
        image, x, y, label, answer, text = fields
        if answer == "unsure":
            return None
        if answer not in ANSWERS:
            raise DataError(f"EstimatedYesNo is {shown(answer)}; yes, no or unsure is expected")
        pair = label, self._names.get(label) or text.strip()
        if pair not in self._labels and not (pair[1] and all(map(is_text, pair))):
            raise DataError(f"Label is {shown(label)}; a label of {DESCRIPTIONS} or a TextLabel is expected")
        if image not in self._images:
            checked_name("ImageId", image)
        place = _fraction("X", x), _fraction("Y", y)
        return (
            self._images.setdefault(image, len(self._images)),
            self._labels.setdefault(pair, len(self._labels)),
            *place,
            ANSWERS[answer],
        )

    def _without_duplicates(self, table: Array, rows: Array) -> tuple[Array, Array]:
        """Points by image, without those equal to an earlier one, which are reported; their rows alike."""
        order = np.lexsort(table.T[::-1])  # by image first; equal ones in their order
        sorted_points = table[order]
        is_first = np.append(True, (sorted_points[1:] != sorted_points[:-1]).any(axis=1))[: len(order)]
        firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
        for place in np.flatnonzero(~is_first):
            message = f"the same as row {rows[order[firsts[place]]]}; it is left out"
            self.problems.append(Problem(int(rows[order[place]]), "duplicate row", message))
        kept = np.sort(order[is_first])
        by_image = kept[np.argsort(table[kept, 0], kind="stable")]
        return table[by_image], rows[by_image]


def _fraction(field: str, text: str) -> float:
    value = parse_number(text)
    if not 0 <= value <= 1:
        raise DataError(f"{field} is {shown(text)}; a number from 0 to 1 is expected")
    return value
