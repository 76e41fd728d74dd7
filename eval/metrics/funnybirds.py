"""FunnyBirds: the Co-12 protocols of Hesse et al., ICCV 2023 (LeGrad's Table 10), from importances and interventions.

An intervention is an image from which parts of the bird, or one background object, were removed. All protocols compare
what an explanation says of the parts with what the model answers to interventions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

Array = np.ndarray[Any, np.dtype[Any]]
Parts = frozenset[str]

PARTS = ("beak", "eye", "foot", "tail", "wing")
COLORS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "beak": ((255, 255, 0),),
    "eye": ((255, 255, 253), (255, 255, 254)),
    "foot": ((255, 0, 1), (255, 0, 2)),
    "tail": ((0, 0, 255),),
    "wing": ((0, 255, 1), (0, 255, 2)),
}
"""Of the parts in part maps."""
BACKGROUND = (204, 204, 204)  # of background object 0; that of object b is larger by b in blue
THRESHOLDS: Array = np.linspace(0.01, 0.50, 80)
RELEVANT = 0.05  # a change of the score by less than this share of it does not count


@dataclass(frozen=True)
class Bird:
    """What is known of one test image.

    Attributes:
        label: its class.
        logits: of the image, `[C]`.
        without: logits of the image with only these parts removed, `[C]` each.
        without_background: logits of the image without each of its B background objects, `[B, C]`.
        importance: of each part of `PARTS` in the explanation of each class, `[C, 5]`.
        background_importance: of each background object, `[C, B]`.
        total: sum of the explanation of each class, `[C]`.
    """

    label: int
    logits: Array
    without: Mapping[Parts, Array]
    without_background: Array
    importance: Array
    background_importance: Array
    total: Array

    @property
    def predicted(self) -> int:
        """The most likely class."""
        return int(self.logits.argmax())

    @property
    def is_correct(self) -> bool:
        """Whether that is the label."""
        return self.predicted == self.label

    def important(self, class_id: int, threshold: float) -> Parts:
        """The parts whose importance for a class exceeds this share of the whole explanation."""
        above = self.importance[class_id] > threshold * self.total[class_id]
        return frozenset(part for part, is_above in zip(PARTS, above, strict=True) if is_above)


def region_importance(attributions: Array, part_map: Array, colors: Sequence[tuple[int, int, int]]) -> Array:
    """The sum of attributions over the pixels of the given colors, each color's dilated by 5 x 5 pixels, `[...]`.

    Args:
        attributions: `[..., H, W]`.
        part_map: RGB, uint8 `[H, W, 3]`.
        colors: where dilated regions overlap, pixels count for each.
    """
    total = np.zeros(attributions.shape[:-2])
    for color in colors:
        region = torch.from_numpy((part_map == np.array(color, dtype=np.uint8)).all(-1))[None].float()
        dilated = F.max_pool2d(region, kernel_size=5, stride=1, padding=2)[0].bool().numpy()
        total += attributions[..., dilated].sum(-1, dtype=np.float64)
    return total


def part_importances(attributions: Array, part_map: Array) -> Array:
    """The importance of each part of `PARTS`, `[..., 5]`."""
    return np.stack([region_importance(attributions, part_map, COLORS[part]) for part in PARTS], axis=-1)


def background_importances(attributions: Array, part_map: Array, count: int) -> Array:
    """The importance of each background object, `[..., count]`."""
    red, green, blue = BACKGROUND
    objects = [region_importance(attributions, part_map, [(red, green, blue + b)]) for b in range(count)]
    return np.stack(objects, axis=-1) if objects else np.zeros((*attributions.shape[:-2], 0))


# ------------------------------------------------------------------ completeness


def minimal_sufficient_sets(class_parts: Array) -> list[list[Parts]]:
    """For each class the smallest sets of parts that no other class has alike.

    A set is sufficient if no other class has the same variants of all its parts, and minimal if no proper subset is.

    Args:
        class_parts: variant of each part of `PARTS`, `[C, 5]`.
    """
    found: list[list[Parts]] = []
    for class_id, own in enumerate(class_parts):
        same = np.delete(class_parts, class_id, axis=0) == own
        sets: list[frozenset[int]] = []
        for size in range(1, len(PARTS) + 1):
            for chosen in combinations(range(len(PARTS)), size):
                if not any(smaller <= set(chosen) for smaller in sets) and not same[:, chosen].all(axis=1).any():
                    sets.append(frozenset(chosen))
        found.append([frozenset(PARTS[part] for part in chosen) for chosen in sets])
    return found


def csdc(birds: Sequence[Bird], sets: Sequence[Sequence[Parts]], threshold: float) -> float:
    """Controlled synthetic data check: the largest share of a minimal sufficient set that is important.

    Args:
        birds: misclassified ones are left out.
        sets: of `minimal_sufficient_sets`; a class without any counts 0.
        threshold: of importance.
    """
    scores = []
    for bird in birds:
        if bird.is_correct:
            important = bird.important(bird.label, threshold)
            scores.append(max((len(important & chosen) / len(chosen) for chosen in sets[bird.label]), default=0.0))
    return _mean(scores)


def preservation_check(birds: Sequence[Bird], threshold: float) -> float:
    """PC: how often the prediction stays the same when only the important parts are kept."""
    return _mean([_changed(bird, frozenset(PARTS) - _important(bird, threshold)) == bird.predicted for bird in birds])


def deletion_check(birds: Sequence[Bird], threshold: float) -> float:
    """DC: how often the prediction changes when the important parts are removed."""
    return _mean([_changed(bird, _important(bird, threshold)) != bird.predicted for bird in birds])


def _important(bird: Bird, threshold: float) -> Parts:
    return bird.important(bird.predicted, threshold)


def _changed(bird: Bird, removed: Parts) -> int:
    return int(bird.without[removed].argmax())


# ------------------------------------------------------------------ correctness, contrastivity, background


def single_deletion(birds: Sequence[Bird]) -> float:
    """SD: rank correlation of importances with the drops of the score when one part is removed, scaled to [0, 1]."""
    scores = []
    for bird in birds:
        drops = [bird.logits[bird.label] - bird.without[frozenset([part])][bird.label] for part in PARTS]
        importance = bird.importance[bird.label]
        if np.ptp(drops) and np.ptp(importance):  # a constant has no ranks
            scores.append((float(spearmanr(drops, importance).statistic) + 1) / 2)
    return _mean(scores)


def distractibility(birds: Sequence[Bird], threshold: float) -> float:
    """D: one minus the share of irrelevant parts and background objects that are important.

    Irrelevant is what can be removed without lowering the score of the label by 5 % or more. Images without anything
    irrelevant are left out.
    """
    shares = []
    for bird in birds:
        score = float(bird.logits[bird.label])
        removed = np.array(
            [bird.without[frozenset([part])][bird.label] for part in PARTS]
            + [logits[bird.label] for logits in bird.without_background]
        )
        irrelevant = (np.abs(score - removed) < RELEVANT * abs(score)) | (score < removed)
        importance = np.concatenate([bird.importance[bird.label], bird.background_importance[bird.label]])
        important = importance > threshold * bird.total[bird.label]
        if irrelevant.any():
            shares.append(1 - (important & irrelevant).sum() / irrelevant.sum())
    return _mean(shares)


def background_independence(birds: Sequence[Bird]) -> float:
    """BI, of the model: the share of background objects whose removal lowers the score by less than 5 %."""
    matters = total = 0
    for bird in birds:
        score = float(bird.logits[bird.label])
        removed = bird.without_background.reshape(-1, len(bird.logits))[:, bird.label]
        matters += int(((np.abs(score - removed) >= RELEVANT * abs(score)) & (score > removed)).sum())
        total += len(removed)
    return 1 - matters / total if total else float("nan")


def target_sensitivity(birds: Sequence[Bird], class_parts: Array) -> float:
    """TS: whether explanations of two other classes point at the parts that the bird shares with each.

    For two classes that share two parts each with the label's, disjoint where possible, the parts shared with one
    should matter more for it than for the other. Images where the model itself does not behave so are left out.

    Args:
        birds: the test images.
        class_parts: variant of each part of `PARTS`, `[C, 5]`.
    """
    results: list[bool] = []
    for bird in birds:
        pair = _contrasting(class_parts, bird.label)
        if pair is None:
            continue
        (first, own), (second, others) = pair
        a, b = (bird.without[frozenset(PARTS[part] for part in parts)] for parts in (own, others))
        if a[first] < b[first] and b[second] < a[second]:
            importance = bird.importance
            results.append(importance[first][own].sum() > importance[second][own].sum())
            results.append(importance[first][others].sum() < importance[second][others].sum())
    return _mean(results)


def contrasting_classes(class_parts: Array, label: int) -> tuple[int, int] | None:
    """The two classes that `target_sensitivity` contrasts for a label; None if there are none.

    Args:
        class_parts: variant of each part of `PARTS`, `[C, 5]`.
        label: a class.
    """
    pair = _contrasting(class_parts, label)
    return None if pair is None else (pair[0][0], pair[1][0])


def _contrasting(class_parts: Array, label: int) -> tuple[tuple[int, list[int]], tuple[int, list[int]]] | None:
    """Two classes with the parts they share with the label's: the first disjoint pair, else the last (as published)."""
    shared = {int(c): np.flatnonzero(parts == class_parts[label]).tolist() for c, parts in enumerate(class_parts)}
    pair = None
    for pair in combinations([c for c, parts in shared.items() if len(parts) == 2], 2):
        if not set(shared[pair[0]]) & set(shared[pair[1]]):
            break
    return None if pair is None else ((pair[0], shared[pair[0]]), (pair[1], shared[pair[1]]))


# ------------------------------------------------------------------ all of them


def bird_values(bird: Bird, class_parts: Array, sets: Sequence[Sequence[Parts]]) -> dict[str, Array]:
    """What one image adds to the means of `funnybirds_figures`; NaN where it does not count.

    Args:
        bird: the image.
        class_parts: variant of each part of `PARTS`, `[C, 5]`.
        sets: of `minimal_sufficient_sets`.

    Returns:
        Scalars for the protocols without a threshold; for the others, and with `..._as_published`, values at each of
        `THRESHOLDS`, `[80]`.
    """
    one = [bird]
    checks: dict[str, Callable[[float], float]] = {
        "csdc": lambda t: csdc(one, sets, t),
        "csdc_as_published": lambda t: csdc(one, [*sets[:-1], []], t),
        "preservation_check": lambda t: preservation_check(one, t),
        "deletion_check": lambda t: deletion_check(one, t),
        "distractibility": lambda t: distractibility(one, t),
    }
    return {
        "accuracy": np.array(float(bird.is_correct)),
        "single_deletion": np.array(single_deletion(one)),
        "target_sensitivity": np.array(target_sensitivity(one, class_parts)),
        "background_independence": np.array(background_independence(one)),
        **{name: np.array([check(t) for t in THRESHOLDS]) for name, check in checks.items()},
    }


def funnybirds_figures(birds: Iterable[Bird], class_parts: Array) -> dict[str, float]:
    """All protocols at the best threshold: the first at which completeness plus distractibility is largest.

    The birds are read once, one at a time.

    Returns:
        In [0, 1]: `accuracy`, `csdc`, `preservation_check`, `deletion_check`, `single_deletion`, `distractibility`,
        `target_sensitivity`, `background_independence` and their `threshold`. The original gives the last class no
        minimal sufficient set; `..._as_published` are the threshold-dependent figures under that rule.
    """
    sets = minimal_sufficient_sets(class_parts)
    totals: dict[str, Array] = {}
    weights: dict[str, Array] = {}
    for bird in birds:
        for name, values in bird_values(bird, class_parts, sets).items():
            # background independence is a mean over objects, the others are means over images
            weight = len(bird.without_background) if name == "background_independence" else 1
            known = np.isfinite(values) * weight
            totals[name] = totals.get(name, 0.0) + np.nan_to_num(values) * known
            weights[name] = weights.get(name, 0) + known
    means = {
        name: np.divide(total, weights[name], out=np.full_like(total, np.nan), where=weights[name] > 0)
        for name, total in totals.items()
    }
    figures = {name: float(mean) for name, mean in means.items() if mean.ndim == 0}
    curves = {name: mean for name, mean in means.items() if mean.ndim and name != "csdc_as_published"}
    for suffix in ("", "_as_published"):
        curves["csdc"] = means[f"csdc{suffix}"]
        completeness = (curves["csdc"] + curves["preservation_check"] + curves["deletion_check"]) / 3
        best = int(np.argmax(completeness + curves["distractibility"]))
        figures |= {f"{name}{suffix}": float(curve[best]) for name, curve in curves.items()}
        figures[f"threshold{suffix}"] = float(THRESHOLDS[best])
    return figures


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
