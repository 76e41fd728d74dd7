"""Perturbation tests: accuracy while pixels are removed in the order of relevance (Chefer et al., CVPR 2021).

Removing the most relevant pixels first is the positive test, where a low area is good; the least relevant first is the
negative one, where a high area is good (sec. 4.4 of the LeGrad paper).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

STEPS: Array = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


def remove_pixels(images: Tensor, relevance: Tensor, share: float, positive: bool) -> Tensor:
    """Images with a share of their pixels set to 0 (black).

    Args:
        images: in [0, 1] and not yet normalized, `[B, 3, h, w]`.
        relevance: `[B, h, w]`.
        share: of the pixels, in [0, 1]; their number is rounded down.
        positive: the most relevant pixels; otherwise the least relevant ones.
    """
    flat = relevance.flatten(1)
    count = int(flat.shape[1] * share)
    chosen = flat.topk(count, dim=1, largest=positive).indices
    kept = torch.ones_like(flat, dtype=images.dtype).scatter_(1, chosen, 0.0)
    return images * kept.view(len(images), 1, *relevance.shape[1:])


def hits(logits: Array, target: Array) -> Array:
    """Whether the target is the most likely class, bool `[..., N]`; logits `[..., N, classes]`."""
    return logits.argmax(-1) == target


def area(accuracy: Array) -> float:
    """Area under the accuracy while 0 to 90 % of the pixels are removed, in [0, 0.9] (trapezoids).

    Args:
        accuracy: unperturbed, then at each of `STEPS`, `[10]`.
    """
    return float(trapezoid(accuracy, np.concatenate([[0.0], STEPS])))


def perturbation_figures(unperturbed: Array, perturbed: Array) -> dict[str, float]:
    """The area, also divided by its width, with and without the unperturbed accuracy, and the mean accuracy.

    Args:
        unperturbed: hits of the whole images, `[N]`.
        perturbed: hits at each of `STEPS`, `[9, N]`.

    Returns:
        `auc` is our reading of the LeGrad paper ("ranges from 0% to 90%"); which of the others a published table uses
        is not known.
    """
    accuracy = perturbed.mean(axis=1)
    whole = area(np.concatenate([[unperturbed.mean()], accuracy]))
    without = float(trapezoid(accuracy, STEPS))
    return {
        "accuracy": float(unperturbed.mean()),
        "auc": whole,
        "auc_normalized": whole / 0.9,
        "auc_from_10": without,
        "auc_from_10_normalized": without / 0.8,
        "mean_accuracy": float(accuracy.mean()),
    }
