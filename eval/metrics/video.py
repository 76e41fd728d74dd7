"""Localization in synthetic videos: per frame against the mask of what sounds, and scores against presence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]

THRESHOLDS: Array = np.linspace(0, 1, 20, endpoint=False)


def frame_ious(heatmap: Array, mask: Array) -> Array:
    """IoU of the pixels above each of 20 thresholds and a mask `[H, W]`, `[20]`; the heatmap is in [0, 1].

    >>> frame_ious(np.array([[0.2, 0.9]]), np.array([[False, True]])).round(2).tolist()[:6]
    [0.5, 0.5, 0.5, 0.5, 1.0, 1.0]
    """
    inside, everywhere = np.sort(heatmap[mask]), np.sort(heatmap, axis=None)
    found = inside.size - np.searchsorted(inside, THRESHOLDS, side="right")
    predicted = everywhere.size - np.searchsorted(everywhere, THRESHOLDS, side="right")
    ious: Array = found / (predicted + inside.size - found)
    return ious


def area_under_roc(positive: Array, negative: Array) -> float:
    """The probability that a score of `positive` `[N]` is above one of `negative` `[M]`; NaN where one is empty.

    >>> area_under_roc(np.array([0.9, 0.4]), np.array([0.1, 0.4]))
    0.875
    """
    from torchmetrics.functional.classification import binary_auroc

    if not len(positive) or not len(negative):
        return float("nan")
    # ranks, since torchmetrics takes what is outside [0, 1] for logits
    _, ranks = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    target = np.repeat([1, 0], [len(positive), len(negative)])
    return float(binary_auroc(torch.from_numpy(ranks / max(ranks.max(), 1)), torch.from_numpy(target)))
