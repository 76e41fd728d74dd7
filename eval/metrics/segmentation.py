"""Foreground segmentation by relevance maps: ImageNet-Segmentation (Chefer et al., CVPR 2021; LeGrad's Table 1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from eval.metrics.prompted_segmentation import score_class

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ForegroundScore:
    """The figures of one image, of which `foreground_figures` makes those of a data set.

    Attributes:
        correct: pixels whose class (background or foreground) is right.
        labeled: all pixels.
        intersection, union: of prediction and truth for background and foreground, `[2]`.
        average_precision: of the foreground; NaN if the truth is empty.
        average_precision_as_published: over both classes' pixels together, as the original computes it.
        f1: of the foreground; 0 if neither prediction nor truth has any.
        f1_as_published: mean over the rows of the image, as the original computes it.
    """

    correct: int
    labeled: int
    intersection: Array
    union: Array
    average_precision: float
    average_precision_as_published: float
    f1: float
    f1_as_published: float


def scaled(relevance: Array, side: int = 224) -> Array:
    """A relevance map upsampled (bilinear, half-pixel) and min-max normalized, `[side, side]`; 0 if it is constant."""
    maps = torch.from_numpy(np.asarray(relevance, dtype=np.float32))[None, None]
    if maps.shape[-2:] != (side, side):
        maps = F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
    low, high = maps.min(), maps.max()
    return ((maps - low) / (high - low)).nan_to_num(0.0)[0, 0].numpy() if high > low else np.zeros((side, side), "f4")


def foreground(relevance: Array) -> Array:
    """The pixels above the mean of a scaled map, bool `[H, W]`."""
    return relevance > torch.from_numpy(relevance).mean().item()


def score_foreground(relevance: Array, truth: Array) -> ForegroundScore:
    """The figures of one image.

    Args:
        relevance: of `scaled`, `[H, W]`.
        truth: bool `[H, W]`.
    """
    predicted = foreground(relevance)
    classes = [(~predicted, ~truth), (predicted, truth)]
    both = np.stack([1 - relevance, relevance])[None]
    if not relevance.any():  # constant: the original scores neither class
        both = np.zeros_like(both)
    return ForegroundScore(
        correct=int((predicted == truth).sum()),
        labeled=truth.size,
        intersection=np.array([int((p & t).sum()) for p, t in classes]),
        union=np.array([int((p | t).sum()) for p, t in classes]),
        average_precision=score_class(relevance[None], truth[None]).average_precision,
        average_precision_as_published=score_class(
            both.reshape(1, 2, -1), np.stack([~truth, truth]).reshape(1, 2, -1)
        ).average_precision,
        f1=_f1(predicted[None], truth[None]),
        f1_as_published=_f1(predicted, truth),
    )


def _f1(predicted: Array, truth: Array) -> float:
    """The mean over the first axis of F1 over the others."""
    axes = tuple(range(1, truth.ndim))
    hits, total = (predicted & truth).sum(axes), predicted.sum(axes) + truth.sum(axes)
    return float(np.divide(2 * hits, total, out=np.zeros(len(truth)), where=total > 0).mean())


def foreground_figures(scores: Iterable[ForegroundScore]) -> dict[str, float]:
    """Pixel accuracy, mean IoU (background and foreground, summed over images first), mAP and F1, in [0, 1].

    `mean_average_precision` is over the images with foreground. The scores are read once.
    """
    values = np.array([np.hstack(list(vars(score).values())) for score in scores], dtype=np.float64)
    correct, labeled, *_ = values.T
    background, object_iou = (float(v) for v in values[:, 2:4].sum(0) / np.maximum(values[:, 4:6].sum(0), 1))
    average_precision, average_precision_as_published, f1, f1_as_published = values[:, 6:].T
    known = average_precision[~np.isnan(average_precision)]
    return {
        "pixel_accuracy": float(correct.sum() / labeled.sum()),
        "mean_iou": (background + object_iou) / 2,
        "iou_background": background,
        "iou_foreground": object_iou,
        "mean_average_precision": float(known.mean()) if len(known) else float("nan"),
        "mean_average_precision_as_published": float(average_precision_as_published.mean()),
        "mean_f1": float(f1.mean()),
        "mean_f1_as_published": float(f1_as_published.mean()),
    }
