"""Verdicts: what a score means, in words that promise no more than is known."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import NamedTuple

from avgrad.localization import Localization
from avgrad.models.imagebind import MINI


class Verdict(NamedTuple):
    """A score in words.

    Attributes:
        words: a short sentence without a full stop.
        probability: that the object is in the image, where the model knows it.
        absent: whether the object is probably not in the image.
    """

    words: str
    probability: float | None
    absent: bool


_STEPS = (
    (0.8, "very likely in the image"),
    (0.5, "likely in the image"),
    (0.2, "perhaps not in the image"),
    (0.0, "probably not in the image"),
)


@cache
def _calibration() -> tuple[float, float] | None:
    """Scale and bias that turn a score of the bundled model into a logit; its training writes them into the file."""
    from safetensors import safe_open

    with safe_open(MINI, "pt") as file:
        entry = json.loads((file.metadata() or {}).get("avgrad", "{}"))
    return (entry["scale"], entry["bias"]) if "scale" in entry and "bias" in entry else None


def probability(model: str, score: float) -> float | None:
    """How likely an object with this score is in the image, in [0, 1]; None where the model does not tell."""
    calibration = _calibration() if model == "mini" else None
    if calibration is None:
        return None
    scale, bias = calibration
    return 1 / (1 + math.exp(-(scale * score + bias)))


def verdicts(result: Localization) -> list[Verdict]:
    """What the scores of a result mean, for each of its prompts."""
    return [_verdict(result, index) for index in range(len(result.prompts))]


def _verdict(result: Localization, index: int) -> Verdict:
    score = float(result.scores[index])
    likely = probability(result.model, score)
    if likely is not None:
        words = next(words for least, words in _STEPS if likely >= least)
        return Verdict(words, likely, likely < 0.5)
    modality = result.prompts[index].modality
    baselines = [float(s) for s, p in zip(result.scores, result.prompts, strict=True) if p.modality == modality]
    if len(baselines) == 1:
        return Verdict("this model's scores mean something only beside others: add a prompt to compare", None, False)
    best = max(baselines)
    plural = "texts" if modality == "text" else "sounds"
    if score == best:
        return Verdict(f"fits the image best of the {len(baselines)} {plural}", None, False)
    return Verdict(f"fits the image less well than the best of the {plural} ({best - score:.3f} below it)", None, False)
