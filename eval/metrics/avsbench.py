"""AVSBench: IoU and F-score of binary masks (S4, MS3) and of semantic maps (AVSS).

The originals take the F-score's maximum over thresholds within each batch, so it depends on the batch size, and average
AVSS over classes that never occur. The figures here do neither; theirs are `..._as_published`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]

BETA2 = 0.3  # recall weighs this much of precision
THRESHOLDS: Array = torch.linspace(0, 1 - 1e-10, 255).numpy()


def frame_iou(predicted: Array, truth: Array) -> float:
    """IoU of a frame; where the truth is empty, the share of pixels that are rightly not predicted.

    Args:
        predicted: bool `[H, W]`, in the original probabilities above 0.5.
        truth: bool `[H, W]`.
    """
    if not truth.any():
        return float((~predicted).mean())
    return int((predicted & truth).sum()) / (int((predicted | truth).sum()) + 1e-7)


def precision_recall_curve(probabilities: Array, truth: Array) -> tuple[Array, Array]:
    """Precision and recall of a frame where pixels of at least each of `THRESHOLDS` are predicted, `[255]` each.

    Args:
        probabilities: float32 in [0, 1], `[H, W]`.
        truth: bool `[H, W]`.
    """
    every, own = np.sort(probabilities, axis=None), np.sort(probabilities[truth])
    predicted = every.size - np.searchsorted(every, THRESHOLDS, side="left")
    hits = own.size - np.searchsorted(own, THRESHOLDS, side="left")
    return hits / (predicted + 1e-20), hits / (own.size + 1e-20)


def f_curve(probabilities: Array, truth: Array) -> Array:
    """F-score of a frame at each of `THRESHOLDS`, `[255]`; NaN where the truth is empty."""
    if not truth.any():
        return np.full(len(THRESHOLDS), np.nan)
    return _f_score(*precision_recall_curve(probabilities, truth))


def _f_score(precision: Array, recall: Array) -> Array:
    below = BETA2 * precision + recall
    return np.divide((1 + BETA2) * precision * recall, below, out=np.zeros_like(below), where=below > 0)


def f_score(curves: Array) -> float:
    """The largest value of the mean curve of all frames whose truth is not empty; 0 if there is none.

    Args:
        curves: of `f_curve`, `[N, 255]`.
    """
    valid = curves[~np.isnan(curves).any(axis=1)]
    return float(valid.mean(axis=0).max()) if len(valid) else 0.0


def f_score_as_published(curves: Array, batches: Sequence[int]) -> float:
    """The mean over batches of the largest value of each batch's mean curve; a batch of empty truths counts 0.

    Args:
        curves: of `f_curve`, `[N, 255]`.
        batches: the batch of each frame, `[N]`; the original's test script takes one video at a time.
    """
    numbers = np.asarray(batches)
    return float(np.mean([f_score(curves[numbers == number]) for number in np.unique(numbers)]))


# ------------------------------------------------------------------ semantic


def semantic_counts(predicted: Array, truth: Array, num_classes: int) -> Array:
    """Pixels per class of a frame: in both maps, in the prediction and in the truth, `[3, num_classes]`.

    Args:
        predicted: class of each pixel, integers `[H, W]`.
        truth: the same.
        num_classes: of both.
    """
    both = np.where(predicted == truth, truth, num_classes)
    return np.stack([np.bincount(a.ravel(), minlength=num_classes)[:num_classes] for a in (both, predicted, truth)])


def semantic_scores(counts: Array) -> tuple[Array, Array, Array]:
    """IoU, F-score and whether a class is in either map, for each frame and class, `[..., num_classes]`.

    Args:
        counts: of `semantic_counts`, `[..., 3, num_classes]`.
    """
    both, predicted, truth = np.moveaxis(counts.astype(float), -2, 0)
    union = predicted + truth - both
    zero = np.zeros_like(both)
    precision = np.divide(both, predicted, out=zero.copy(), where=predicted > 0)
    recall = np.divide(both, truth, out=zero.copy(), where=truth > 0)
    return both / (union + 2.2e-16), _f_score(precision, recall), union > 0


def semantic_sums(counts: Array) -> Array:
    """For each class the sums of IoU and F-score over the frames that it occurs in, and their number, `[3, classes]`.

    Args:
        counts: of `semantic_counts`, `[N, 3, classes]`.
    """
    iou, f_scores, seen = semantic_scores(counts)
    return np.stack([(iou * seen).sum(axis=0), (f_scores * seen).sum(axis=0), seen.sum(axis=0)])


def semantic_figures(sums: Array, background: int | None = None) -> dict[str, float]:
    """Mean IoU and F-score over classes, each class's being the mean over the frames that it occurs in.

    Args:
        sums: of `semantic_sums`, `[3, classes]`.
        background: a class to leave out of the `..._without_background` figures; the original leaves out the last.

    Returns:
        `mean_iou` and `f_score` over the classes that occur in any frame; `..._as_published` over all classes, those
        that never occur counting 0.
    """
    frames = sums[2]
    figures: dict[str, float] = {}
    for name, values in (("mean_iou", sums[0]), ("f_score", sums[1])):
        per_class = np.divide(values, frames, out=np.zeros(len(frames)), where=frames > 0)
        kept = np.arange(len(frames)) != (len(frames) - 1 if background is None else background)
        figures[name] = _mean(per_class[frames > 0])
        figures[f"{name}_without_background"] = _mean(per_class[(frames > 0) & kept])
        figures[f"{name}_as_published"] = _mean(per_class)
        figures[f"{name}_without_background_as_published"] = _mean(per_class[:-1])
    return figures


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")


def palette(num_classes: int) -> Array:
    """The color of each class in AVSS's label maps, uint8 `[num_classes, 3]`: the bits of its number, three at a time,
    become the high bits of red, green and blue."""
    colors = np.zeros((num_classes, 3), dtype=np.uint8)
    for index in range(num_classes):
        for bit in range(8):
            for channel in range(3):
                colors[index, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return colors
