"""Prompted segmentation: average precision and intersection over union per class (Hamilton et al., CVPR 2024).

Own code where torchmetrics has an average precision, because both figures come from one sort of a class's scores;
torchmetrics needs several 64-bit copies of every pixel. The tests compare both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avgrad.engine.attribute import min_max, upsample

Array = np.ndarray[Any, np.dtype[Any]]

Normalization = Literal["dataset", "image"]
NORMALIZATIONS: tuple[Normalization, ...] = ("dataset", "image")
NUM_THRESHOLDS = 20
# Where precision-recall curves are sampled.
RECALL_LEVELS: Array = np.linspace(0.0, 1.0, 101)
MAX_PIXELS = 1 << 22  # that `score_parts` sorts at once
IMAGES_AT_ONCE = 16
_SAMPLE = 256  # pixels of an image, from which ranges of values are estimated


def normalized_heatmaps(raw: Array, normalization: Normalization, side: int, low: float, high: float) -> Tensor:
    """Heatmaps as they are scored.

    Args:
        raw: on the patch grid, `[N, gh, gw]`.
        normalization: "dataset": min-max over the data set, before the maps are upsampled (DenseAV); "image":
            min-max of each upsampled map (LeGrad).
        side: height and width of the upsampled maps.
        low, high: smallest and largest raw value of the data set.

    Returns:
        `[N, side, side]`, float32 in [0, 1].
    """
    maps = torch.from_numpy(raw)[:, None]
    if normalization == "dataset":
        maps = (maps - low) / max(high - low, torch.finfo(maps.dtype).tiny)
    maps = upsample(maps, (side, side))
    return (min_max(maps) if normalization == "image" else maps)[:, 0]


def heatmap_parts(
    raw: Array, masks: Array, normalization: Normalization, side: int, low: float = 0.0, high: float = 1.0
) -> Callable[[], Iterator[tuple[Array, Array]]]:
    """Heatmaps and masks for `score_parts`, a few images at a time.

    Args:
        raw, normalization, side, low, high: as in `normalized_heatmaps`.
        masks: eight pixels to a byte, `[N, bytes]`.
    """

    def parts() -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(raw), IMAGES_AT_ONCE):
            own = slice(start, start + IMAGES_AT_ONCE)
            maps = normalized_heatmaps(np.array(raw[own]), normalization, side, low, high)
            bits = np.unpackbits(masks[own], axis=1, count=side * side)
            yield maps.numpy(), bits.astype(bool).reshape(-1, side, side)

    return parts


@dataclass(frozen=True)
class ClassScore:
    """The figures of one class.

    Attributes:
        average_precision: over all pixels of all its images; NaN where no pixel belongs to the class.
        iou: the best of 20 thresholds; NaN where no pixel belongs to the class.
        threshold: the heatmap value above which the best IoU is reached.
        precision: at each of `RECALL_LEVELS`.
        num_images: number of images.
    """

    average_precision: float
    iou: float
    threshold: float
    precision: Array
    num_images: int


@dataclass(frozen=True)
class SegmentationScore:
    """The figures of all classes.

    Attributes:
        classes: by class id, ascending.
    """

    classes: Mapping[int, ClassScore]

    @property
    def mean_average_precision(self) -> float:
        """Mean over the classes that have pixels, in [0, 1]; NaN where none has."""
        return _mean([score.average_precision for score in self.classes.values()])

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that have pixels, in [0, 1]; NaN where none has."""
        return _mean([score.iou for score in self.classes.values()])

    @property
    def mean_average_precision_as_published(self) -> float:
        """As DenseAV's evaluation has it: a class without pixels counts as 0."""
        return _mean([float(np.nan_to_num(score.average_precision)) for score in self.classes.values()])

    @property
    def mean_iou_as_published(self) -> float:
        """As DenseAV's evaluation has it: a class without pixels counts as 0."""
        return _mean([float(np.nan_to_num(score.iou)) for score in self.classes.values()])

    @property
    def precision(self) -> Array:
        """Precision at each of `RECALL_LEVELS`, mean over the classes that have pixels."""
        curves = [s.precision for s in self.classes.values() if not np.isnan(s.average_precision)]
        return np.mean(curves, axis=0) if curves else np.full(len(RECALL_LEVELS), np.nan)


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def thresholds_between(low: float, high: float) -> Array:
    """The 20 thresholds of the protocol, evenly spaced from the smallest to the largest heatmap value, float32."""
    thresholds: Array = torch.linspace(low, high, NUM_THRESHOLDS).numpy()
    return thresholds


def score_class(heatmaps: Tensor | Array, masks: Tensor | Array) -> ClassScore:
    """Average precision and best IoU of one class.

    A pixel is predicted where its heatmap is greater than the threshold. Only the order of the values matters.

    Args:
        heatmaps: finite values of any range, `[N, H, W]`.
        masks: boolean, `[N, H, W]`.

    Raises:
        ValueError: shapes that differ, no pixels at all, masks that are not boolean or heatmaps that are not finite.
    """
    scores, truth = _array(heatmaps), _array(masks)
    if scores.shape != truth.shape or scores.ndim != 3 or not scores.size:
        raise ValueError(
            f"heatmaps are {list(scores.shape)} and masks {list(truth.shape)}; expected the same [N, H, W] with pixels"
        )
    if truth.dtype != np.bool_:
        raise ValueError(f"masks are {truth.dtype}; expected bool")
    found = np.sort(scores[truth])
    ordered = np.sort(scores, axis=None)
    low, high = float(ordered[0]), float(ordered[-1])
    if not np.isfinite(low) or not np.isfinite(high):  # NaN is sorted to the end
        raise ValueError("heatmaps hold values that are not finite; expected finite numbers")
    if not found.size:
        return ClassScore(np.nan, np.nan, np.nan, np.full(len(RECALL_LEVELS), np.nan), len(scores))

    # average precision is the mean, over the class's pixels, of the precision at the threshold ">= that pixel's score"
    true_positives = found.size - np.searchsorted(found, found, side="left")
    predicted = ordered.size - np.searchsorted(ordered, found, side="left")
    precision = true_positives / predicted
    rank = np.ceil(RECALL_LEVELS * found.size).astype(int).clip(1)

    thresholds = thresholds_between(low, high)
    intersection = found.size - np.searchsorted(found, thresholds, side="right")
    union = ordered.size - np.searchsorted(ordered, thresholds, side="right") + found.size - intersection
    iou = intersection / union
    best = int(iou.argmax())
    return ClassScore(
        average_precision=float(precision.mean()),
        iou=float(iou[best]),
        threshold=float(thresholds[best]),
        precision=precision[found.size - rank],
        num_images=len(scores),
    )


def score_parts(parts: Callable[[], Iterable[tuple[Array, Array]]], max_pixels: int = MAX_PIXELS) -> ClassScore:
    """`score_class` for images that come in parts, in bounded memory.

    Beyond `max_pixels` the pixels are sorted in ranges of heatmap values of about so many pixels each, and the parts
    are asked for once more for each range. Equal values are always sorted together.

    Args:
        parts: gives heatmaps, finite float32 `[n, H, W]`, and masks, bool `[n, H, W]`; always the same.
        max_pixels: sorted at once.

    Raises:
        ValueError: as `score_class`.
    """
    kept: list[tuple[Array, Array]] = []
    size = 0
    for part in parts():
        kept.append(part)
        size += part[0].size
        if size > max_pixels:
            break
    else:
        return score_class(*(np.concatenate(arrays) for arrays in zip(*kept, strict=True)))
    kept.clear()

    num_images = num_pixels = num_found = 0
    extremes, sample = [], []
    for scores, truth in parts():
        num_images, num_pixels, num_found = num_images + len(scores), num_pixels + scores.size, num_found + truth.sum()
        extremes += [scores.min(), scores.max()]
        sample.append(scores.reshape(len(scores), -1)[:, :: max(1, scores[0].size // _SAMPLE)].ravel())
    low, high = float(np.min(extremes)), float(np.max(extremes))
    if not np.isfinite([low, high]).all():
        raise ValueError("heatmaps hold values that are not finite; expected finite numbers")
    if not num_found:
        return ClassScore(np.nan, np.nan, np.nan, np.full(len(RECALL_LEVELS), np.nan), num_images)

    shares = np.linspace(0, 1, -(-num_pixels // max_pixels) + 1)[1:-1]
    edges = np.unique(np.quantile(np.concatenate(sample), shares, method="nearest"))
    rank = np.ceil(RECALL_LEVELS * num_found).astype(int).clip(1)
    thresholds = thresholds_between(low, high)
    curve, total = np.empty(len(rank)), 0.0
    above = np.zeros((2, len(thresholds)), dtype=np.int64)  # pixels above each threshold
    before = np.zeros(2, dtype=np.int64)  # pixels in higher ranges
    for first, last in pairwise([np.inf, *edges[::-1], -np.inf]):
        ordered, found = _sorted_range(parts(), last, first)
        predicted, hits = (
            before[place] + own.size - np.searchsorted(own, found, side="left")
            for place, own in enumerate((ordered, found))
        )
        precision = hits / predicted
        total += float(precision.sum())
        here = (rank > before[1]) & (rank <= before[1] + found.size)
        curve[here] = precision[found.size - (rank[here] - before[1])]
        above += [own.size - np.searchsorted(own, thresholds, side="right") for own in (ordered, found)]
        before += [ordered.size, found.size]
    iou = above[1] / (above[0] + num_found - above[1])
    best = int(iou.argmax())
    return ClassScore(total / num_found, float(iou[best]), float(thresholds[best]), curve, num_images)


def _sorted_range(parts: Iterable[tuple[Array, Array]], low: float, high: float) -> tuple[Array, Array]:
    """The sorted values in [low, high), of all pixels and of those that belong to the class."""
    every, own = [], []
    for scores, truth in parts:
        inside = (scores >= np.float32(low)) & (scores < np.float32(high))
        every.append(scores[inside])
        own.append(scores[inside & truth])
    ordered, found = np.concatenate(every), np.concatenate(own)
    ordered.sort()
    found.sort()
    return ordered, found


def prompted_segmentation(
    heatmaps: Tensor | Array, masks: Tensor | Array, class_ids: Tensor | Array | list[int]
) -> SegmentationScore:
    """Per class: average precision over all pixels of all its images, and the best IoU of 20 thresholds.

    The protocol of DenseAV (Hamilton et al., CVPR 2024): the thresholds are evenly spaced between the smallest and the
    largest heatmap value of the class. A class without any pixel scores NaN and is left out of the means; the
    original counts it as 0, which `SegmentationScore` gives as `..._as_published`.

    Args:
        heatmaps: one per prompt, normalized over the data set or each by itself, `[N, H, W]`.
        masks: pixels of the class, boolean, `[N, H, W]`.
        class_ids: integers, `[N]`.

    Raises:
        ValueError: arguments of the wrong shape or type, or values that are not finite.

    >>> heatmaps = torch.tensor([[[0.9, 0.8], [0.3, 0.1]], [[0.2, 0.7], [0.4, 0.6]]])
    >>> masks = torch.tensor([[[True, False], [True, False]], [[False, True], [False, True]]])
    >>> score = prompted_segmentation(heatmaps, masks, [7, 9])
    >>> [round(score.classes[c].average_precision, 4) for c in (7, 9)], [score.classes[c].iou for c in (7, 9)]
    ([0.8333, 1.0], [0.6666666666666666, 1.0])
    >>> round(score.mean_average_precision, 4), round(score.mean_iou, 4)
    (0.9167, 0.8333)
    """
    ids = _array(class_ids) if isinstance(class_ids, Tensor) else np.asarray(class_ids)
    if ids.ndim != 1 or not len(ids) == len(heatmaps) == len(masks) or ids.dtype.kind not in "iu":
        raise ValueError(
            f"class ids are {ids.dtype} {list(ids.shape)} for {len(heatmaps)} heatmaps and {len(masks)} masks; "
            "expected one integer for each"
        )
    classes = {}
    for class_id in np.unique(ids):
        chosen = np.flatnonzero(ids == class_id)
        index = torch.from_numpy(chosen) if isinstance(heatmaps, Tensor) else chosen
        classes[int(class_id)] = score_class(heatmaps[index], masks[index if isinstance(masks, Tensor) else chosen])
    return SegmentationScore(classes)


def _array(values: Tensor | Array) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
