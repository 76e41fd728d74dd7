"""Sound source localization: consensus IoU, success rates, and the extended and negative-audio protocols.

The published evaluations differ in how they upsample a map and in whether a pixel at the threshold is predicted
(`RULES`); a benchmark uses the rule of its reference. Maps are float32 `[h, w]`, masks bool `[S, S]`, ground truth
float or bool `[S, S]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.integrate import trapezoid

Array = np.ndarray[Any, np.dtype[Any]]

SIDE = 224
# as the evaluations write them: 0.05 * 3 is a little more than 0.15
SUCCESS_LEVELS: Array = np.array([0.05 * i for i in range(21)])


@dataclass(frozen=True)
class Rule:
    """How an evaluation makes a mask of a map.

    Attributes:
        mode: interpolation by which a map is upsampled.
        align_corners: as in `torch.nn.functional.interpolate`.
        inclusive: whether pixels at the threshold are predicted.
        flipped: normalizes as `1 - min_max(-x)`, which differs for constant maps, and always predicts the maximum.
    """

    mode: Literal["bilinear", "bicubic"]
    align_corners: bool
    inclusive: bool
    flipped: bool = False


RULES = {
    "lvs": Rule("bilinear", False, False, flipped=True),  # Chen et al., CVPR 2021
    "ez-vsl": Rule("bilinear", True, True),  # Mo and Morgado, ECCV 2022
    "slavc": Rule("bicubic", True, True),  # Mo and Morgado, NeurIPS 2022
    "avgn": Rule("bicubic", False, True),  # Mo and Tian, CVPR 2023, the validation of its train.py
    "ssl-alignment": Rule("bilinear", True, False),  # Senocak et al., ICCV 2023, and IS3
}

# ------------------------------------------------------------------ ground truth


def box_mask(boxes: Array, side: int = SIDE) -> Array:
    """The union of boxes, bool `[side, side]`.

    Args:
        boxes: `[n, 4]`, xmin, ymin, xmax, ymax in pixels, truncated to integers; the end is exclusive.
        side: height and width.
    """
    mask = np.zeros((side, side), dtype=bool)
    for left, top, right, bottom in np.maximum(np.asarray(boxes).reshape(-1, 4), 0).astype(int):
        mask[top:bottom, left:right] = True
    return mask


def consensus(boxes: Sequence[Array], side: int = SIDE, canvas: int = 256) -> Array:
    """Ground truth of Flickr-SoundNet: pixels marked by one annotator are 0.5, by two or more 1, `[side, side]`.

    Args:
        boxes: those of each annotator, `[n, 4]`, in pixels of the canvas.
        side: height and width.
        canvas: side of the square that the boxes refer to.
    """
    count = np.zeros((side, side))
    for marked in boxes:
        count += box_mask(np.asarray(marked) * side / canvas, side)
    return np.minimum(count / 2, 1)


# ------------------------------------------------------------------ from maps to masks


def upsample(maps: Array, rule: Rule, side: int = SIDE) -> Array:
    """Maps `[N, h, w]` upsampled to float32 `[N, side, side]`."""
    raw = torch.from_numpy(np.asarray(maps, dtype=np.float32))[:, None]
    return F.interpolate(raw, (side, side), mode=rule.mode, align_corners=rule.align_corners)[:, 0].numpy()


def min_max(scores: Array) -> Array:
    """Scores min-max normalized; unchanged if they are constant, as in the evaluations."""
    low, high = scores.min(), scores.max()
    return scores if low == high else (scores - low) / (high - low)


def normalized(scores: Array, rule: Rule) -> Array:
    """An upsampled map as the evaluation normalizes it."""
    return 1 - min_max(-scores) if rule.flipped else min_max(scores)


def combine(audio: Array, objects: Array, alpha: float = 0.4) -> Array:
    """An audio-visual map with an object-saliency map (EZ-VSL): `alpha` of the first and the rest of the second."""
    return np.float32(alpha) * audio + np.float32(1 - alpha) * objects


def median_mask(scores: Array, rule: Rule, share: float = 0.5) -> Array:
    """The pixels above the score that `share` of all pixels lie below.

    Args:
        scores: normalized, `[S, S]`.
        rule: decides about ties, and about pixels of at least 1.
        share: of the pixels, in [0, 1).
    """
    threshold = np.sort(scores, axis=None)[int(scores.size * share)]
    mask = scores >= threshold if rule.inclusive else scores > threshold
    # LVS sets what it has predicted to 1 and then everything below 1 to 0: pixels of at least 1 stay
    return mask | (scores >= 1) if rule.flipped else mask


def adaptive_mask(scores: Array, truth: Array) -> Array:
    """The highest pixels, as many as the ground truth has (half of all if it is empty), less those at the threshold.

    The comparison is strict in the original (SSL alignment), so without ties one pixel is missing.
    """
    count = int(np.count_nonzero(truth)) or scores.size // 2
    return scores > np.sort(scores, axis=None)[scores.size - count]


# ------------------------------------------------------------------ one item


def ciou(mask: Array, truth: Array) -> float:
    """Consensus IoU: agreement over the ground truth plus what is predicted outside it; NaN if both are empty."""
    inside = float((mask * truth).sum(dtype=np.float64))
    union = float(truth.sum(dtype=np.float64)) + float(np.count_nonzero(mask & (truth == 0)))
    return inside / union if union else float("nan")


def mask_iou(a: Array, b: Array) -> float:
    """IoU of two masks; 1 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def confidence(scores: Array) -> float:
    """The mean of the highest quarter of the scores (SLAVC)."""
    quarter = scores.size // 4
    return float(np.partition(scores, scores.size - quarter, axis=None)[-quarter:].mean(dtype=np.float64))


def predicted_share(mask: Array) -> float:
    """Share of the pixels that are predicted; on negative audio, the error (pIA)."""
    return float(mask.mean())


def piap_as_published(mask: Array, truth: Array) -> float:
    """AVGN's pixel-wise average precision with its arguments swapped, as its code calls it.

    The prediction stands in for the truth and the truth for the score. `prompted_segmentation.score_class` gives the
    average precision that is meant.
    """
    predicted = int(mask.sum())
    if not predicted:
        return 0.0
    marked, hits = int(np.count_nonzero(truth)), int((mask & (truth > 0)).sum())
    recall = hits / predicted
    precision = hits / marked if marked else 0.0
    return precision * recall + predicted / mask.size * (1 - recall)


# ------------------------------------------------------------------ all items


def success_rate(values: Array, level: float = 0.5) -> float:
    """Share of items whose cIoU is at least `level`; NaN counts as failure."""
    return float((np.asarray(values) >= level).mean())


def success_auc(values: Array) -> float:
    """Area under the success rate over the levels 0, 0.05, ..., 1 (trapezoids)."""
    return _area([success_rate(values, level) for level in SUCCESS_LEVELS])


def negative_auc(shares: Array) -> float:
    """AUC_N: area under the share of negatives of which at most 0, 0.05, ..., 1 of the pixels are predicted."""
    return _area([float((np.asarray(shares) <= level).mean()) for level in SUCCESS_LEVELS])


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 if both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


def _area(rates: Sequence[float]) -> float:
    return float(trapezoid(rates, SUCCESS_LEVELS))


def interactive_success(values: Array, groups: Sequence[Hashable], level: float = 0.5) -> float:
    """IIoU: share of groups (the sounds of one image) all of whose items have a cIoU of at least `level`.

    NaN in any group makes the result NaN, as in the original.
    """
    return float(np.mean(list(group_success(values, groups, level).values())))


def group_success(values: Array, groups: Sequence[Hashable], level: float = 0.5) -> dict[Hashable, float]:
    """Whether all items of a group reach `level` (1 or 0, NaN if one is NaN), by group in order of appearance."""
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(float(value))
    return {group: float(np.nan if np.isnan(v).any() else min(v) >= level) for group, v in members.items()}


def interactive_auc(values: Array, groups: Sequence[Hashable]) -> float:
    """IAUC: area under `interactive_success` over the levels 0, 0.05, ..., 1."""
    return _area([interactive_success(values, groups, level) for level in SUCCESS_LEVELS])


# ------------------------------------------------------------------ the extended protocol (SLAVC)


def precision_recall(
    values: Array, confidences: Array, negative: Array, threshold: float, level: float = 0.5
) -> tuple[float, float]:
    """Precision and recall of localization where negatives have nothing to localize.

    A confident negative, or a confident positive whose cIoU is below `level`, is a false positive; a positive that is
    not confident is a false negative.

    Args:
        values: cIoU `[N]`.
        confidences: `[N]`.
        negative: whether an item has no sounding object in the image, `[N]`.
        threshold: confidence from which an item counts as predicted.
        level: cIoU from which it is right.
    """
    confident = confidences >= threshold
    true = int((confident & ~negative & (values >= level)).sum())
    false = int(confident.sum()) - true
    missed = int((~confident & ~negative).sum())
    return true / (true + false) if true + false else 1.0, true / (true + missed) if true + missed else 1.0


def _curve(values: Array, confidences: Array, negative: Array, level: float) -> Array:
    """`precision_recall` at every confidence as the threshold, descending, `[n, 2]`; equal ones share a point."""
    order = np.argsort(-confidences, kind="stable")
    last = np.flatnonzero(np.diff(confidences[order], append=-np.inf))
    true = np.cumsum((~negative & (values >= level))[order])[last]
    missed = int((~negative).sum()) - np.cumsum(~negative[order])[last]
    recall = np.divide(true, true + missed, out=np.ones(len(last)), where=true + missed > 0)
    return np.stack([true / (last + 1), recall], axis=1)


def localization_ap(values: Array, confidences: Array, negative: Array, level: float = 0.5) -> float:
    """Average precision of localization: sum of interpolated precision times the step of recall, from recall 0.

    Args:
        values, confidences, negative, level: as in `precision_recall`.
    """
    precision, recall = _curve(values, confidences, negative, level).T
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(recall, prepend=0.0).clip(0)).sum())


def localization_ap_as_published(values: Array, confidences: Array, negative: Array, level: float = 0.5) -> float:
    """The same as SLAVC computes it: without the first step of recall, the highest confidence, and with at most about
    200 thresholds; a perfect ranking scores less than 1."""
    ordered = np.sort(confidences)
    thresholds = ordered[:-1][:: -max(1, len(ordered) // 200)]
    points = [precision_recall(values, confidences, negative, t, level) for t in thresholds]
    precision, recall = np.array(points).reshape(-1, 2).T
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope[:-1] * np.diff(recall)).sum())


def f1_scores(
    values: Array, confidences: Array, negative: Array, level: float = 0.5
) -> tuple[Array, Array, Array, Array]:
    """Thresholds (about ten, as SLAVC takes them), precision, recall and F1 at each."""
    thresholds = np.sort(confidences)[:: max(1, len(confidences) // 10)]
    points = np.array([precision_recall(values, confidences, negative, t, level) for t in thresholds])
    f1 = np.array([harmonic_mean(precision, recall) for precision, recall in points])
    return thresholds, points[:, 0], points[:, 1], f1


def max_f1(values: Array, confidences: Array, negative: Array, level: float = 0.5) -> float:
    """The largest F1 over all confidences as thresholds."""
    return max(harmonic_mean(*point) for point in _curve(values, confidences, negative, level))


def max_f1_as_published(values: Array, confidences: Array, negative: Array, level: float = 0.5) -> float:
    """The largest F1 over SLAVC's about ten thresholds."""
    return float(f1_scores(values, confidences, negative, level)[-1].max())


def localization_accuracy(values: Array, negative: Array, level: float = 0.5) -> float:
    """LocAcc: share of the positives whose cIoU is at least `level`."""
    return success_rate(values[~negative], level)
