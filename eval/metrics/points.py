"""Point-wise IoU: segmentation measured at labeled points (Benenson and Ferrari, 2022; p-mIoU in LeGrad's Table 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

THRESHOLD = 0.5  # of min-max normalized heatmaps


def point_counts(heatmap: Array, points: Array, positive: Array) -> Array:
    """Points that are true positives, false positives, false negatives and true negatives, int64 `[4]`.

    A point is predicted where the heatmap exceeds one half.

    Args:
        heatmap: min-max normalized `[H, W]`.
        points: x and y in [0, 1] of the image's width and height, `[n, 2]`.
        positive: whether a point lies on the object, bool `[n]`.
    """
    height, width = heatmap.shape
    columns, rows = (points * (width, height)).astype(np.int64).clip(max=(width - 1, height - 1)).T
    predicted = heatmap[rows, columns] > THRESHOLD
    return np.array(
        [
            int((predicted & positive).sum()),
            int((predicted & ~positive).sum()),
            int((~predicted & positive).sum()),
            int((~predicted & ~positive).sum()),
        ]
    )


def point_iou(counts: Array) -> Array:
    """IoU of the object and its mean with the background's, `[..., 2]`.

    Where no point belongs to the background in truth or prediction, the second is the object's alone; NaN where there
    are no points.

    Args:
        counts: of `point_counts`, or sums of them, `[..., 4]`.

    >>> point_iou(np.array([3, 1, 0, 4])).tolist()
    [0.75, 0.775]
    """
    hits, false, missed, rejected = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    with np.errstate(invalid="ignore"):
        object_iou, background = hits / (hits + false + missed), rejected / (rejected + false + missed)
    both = (object_iou + background) / 2
    return np.stack([object_iou, np.where(np.isnan(background), object_iou, both)], axis=-1)
