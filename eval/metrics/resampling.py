"""Average precision and IoU of a class for any weights of its images, for the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics.prompted_segmentation import thresholds_between

Array = np.ndarray[Any, np.dtype[Any]]

# Bins for the scores of a class's own pixels; the bootstrap counts bins, not pixels.
NUM_BINS = 256


@dataclass(frozen=True)
class ClassCounts:
    """One class's pixels by image: they determine its figures for any choice of images.

    Attributes:
        images: place of each image in the list of all, `[n]`.
        mixed: whether a bin holds different scores of the class's own pixels, `[bins]`.
        total: pixels in each bin of scores, descending, `[n, bins]`.
        positive: those of them that belong to the class, `[n, bins]`.
        predicted: pixels above each threshold, `[n, thresholds]`.
        found: those of them that belong to the class, `[n, thresholds]`.
    """

    images: Array
    mixed: Array
    total: Array
    positive: Array
    predicted: Array
    found: Array

    @classmethod
    def of(cls, maps: Array, masks: Array, images: Array) -> ClassCounts:
        """Counts of one class's heatmaps `[n, side, side]`, masks alike, and the images that they belong to `[n]`."""
        scores, truth = maps.reshape(len(maps), -1), masks.reshape(len(masks), -1)
        # Lower edges of bins that hold equally many of the class's own pixels, whose places in the ranking are what
        # average precision is made of. Equal scores share a bin, and only a bin of different ones is inexact.
        low, high = float(scores.min()), float(scores.max())
        own = np.sort(scores[truth])
        places = np.linspace(0, own.size, min(NUM_BINS, own.size), endpoint=False).astype(int)
        edges = np.unique(np.append(own[places], np.float32(low)))
        bins = np.searchsorted(edges, own, side="right") - 1
        mixed = np.bincount(bins, weights=own > edges[bins], minlength=len(edges))[::-1] > 0
        thresholds = thresholds_between(low, high)

        def count(chosen: Array) -> tuple[Array, Array]:
            in_bin = np.bincount(np.searchsorted(edges, chosen, side="right") - 1, minlength=len(edges))
            above = chosen.size - np.searchsorted(np.sort(chosen), thresholds, side="right")
            return in_bin[::-1], above

        every = [count(s) for s in scores]
        true = [count(s[t]) for s, t in zip(scores, truth, strict=True)]
        return cls(
            images,
            mixed,
            *(np.stack([pair[0] for pair in pairs]).astype(np.float64) for pairs in (every, true)),
            *(np.stack([pair[1] for pair in pairs]).astype(np.float64) for pairs in (every, true)),
        )

    def figures(self, weights: Array) -> tuple[Array, Array]:
        """Average precision and best IoU, each `[R]`, where images count as often as the weights `[R, images]` say; NaN
        where no pixel of the class is left."""
        own = weights[:, self.images]
        total, positive = np.cumsum(own @ self.total, axis=1), own @ self.positive
        found = np.cumsum(positive, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = found / total
            before = np.concatenate([precision[:, :1], precision[:, :-1]], axis=1)
            # within a bin of different scores precision goes from the one value to the other
            halfway = np.where(self.mixed & np.isfinite(before), (precision + before) / 2, precision)
            ap = np.nansum(positive * halfway, axis=1) / found[:, -1]
            hits = own @ self.found
            iou = (hits / (own @ self.predicted + found[:, -1:] - hits)).max(axis=1)
        return ap, np.where(found[:, -1] > 0, iou, np.nan)


def mean_over_classes(values: Sequence[Array]) -> Array:
    """The mean of figures `[R]` of classes, those that are NaN left out."""
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    mean: Array = np.where(known, stacked, 0).sum(0) / np.maximum(known.sum(0), 1)
    return mean
