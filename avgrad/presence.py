"""Presence: the probability that what a prompt means is in the image.

A heatmap always shows some place, and what a cosine means depends on the model and the modality. A probability comes

- from a calibration of the model's scores (`Calibration`): mini's file has one, learned in training, and
  `avgrad calibrate` fits one to images and sounds of known classes;
- or, for a model without one, from a reference ("reference"): how exceptional is the prompt's score among those that
  the same image has with N labels, by default the built-in names of everyday sounds? With the z-score of the prompt
  among them and e = N (1 - Phi(z)), the number of labels that would score as high by chance, the probability is
  1 / (1 + e^2). The exponent is chosen, not derived: it is calibrated on mini's synthetic scenes. For a sound it is the
  mean of the labels' own probabilities, each weighted by how probable it is that the sound has this name
  (`NamesSounds.describe`): sounds and images are further apart than texts and images, so their scores are not compared.

Both assume that the labels describe most of what images show, and that an image shows a few of them. The reference
cannot tell that a word is unknown to the model, and says little about images unlike those the model was trained on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from avgrad.errors import InputError, UnsupportedModelError
from avgrad.files import write_atomic
from avgrad.models.checkpoints import cache_folder
from avgrad.models.model import Calibration, Model
from avgrad.models.naming import KeptLabels, NamesSounds, sound_names
from avgrad.prompts import Prompt

PresenceMode = Literal["auto", "reference"]
SOUNDS = ("audio", "speech")


class Presence:
    """Estimates the probability that prompts are in images.

    Args:
        model: as `avgrad.load` gives it.
        mode: "auto" for the model's own calibration, or the one that `avgrad calibrate` has fitted to it; without
            either, probabilities are unknown (NaN). "reference" for the comparison with `labels`.
        labels: of the reference; None for the built-in names of everyday sounds, as far as the model knows them.

    Raises:
        InputError: another mode.
        UnsupportedModelError: "reference" for a model without a text tower, or for a classifier.
    """

    def __init__(self, model: Model, mode: PresenceMode = "auto", labels: Sequence[str] | None = None) -> None:
        if mode not in get_args(PresenceMode):
            raise InputError(f"presence={mode!r} is not accepted; expected 'auto', 'reference' or None")
        self.model, self.mode = model, mode
        self._fitted = fitted_calibrations(model.name) if mode == "auto" and model.calibration is None else {}
        self._texts, self._names = KeptLabels(), KeptLabels()
        self.labels: list[str] = []
        if mode == "reference":
            if "text" not in model.modalities or not model.vision.head.cosine:
                raise UnsupportedModelError(
                    f"{model.name} takes no free texts to compare with; presence='auto' or None is expected"
                )
            known = model.knows if isinstance(model, NamesSounds) else lambda text: True
            self.labels = list(labels) if labels is not None else [name for name in sound_names() if known(name)]

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], scores: Tensor) -> Tensor:
        """Probabilities `[B, P]`, float32; NaN where they are unknown.

        Args:
            images: unit-norm embeddings of B images, `[B, D]`.
            prompts: the P prompts.
            scores: cosines of images and prompts, `[B, P]`.
        """
        if self.mode == "reference":
            return self._by_reference(images.cpu().float(), prompts, scores.cpu().float())
        columns = []
        for place, prompt in enumerate(prompts):
            calibration, values = self.calibration(prompt.modality), scores[:, place].cpu().double()
            if calibration is None:
                columns.append(torch.full_like(values, math.nan))
            else:
                columns.append(calibration.probabilities(values))
        return torch.stack(columns, dim=1).float()

    def calibration(self, modality: str) -> Calibration | None:
        """What makes probabilities of the scores of a modality; None where nothing does."""
        return self.model.calibration or self._fitted.get("sound" if modality in SOUNDS else modality)

    def _by_reference(self, images: Tensor, prompts: Sequence[Prompt], scores: Tensor) -> Tensor:
        found, others = torch.full_like(scores, math.nan), self.label_scores(images)
        sounds = [place for place, prompt in enumerate(prompts) if prompt.modality in SOUNDS]
        texts = [place for place, prompt in enumerate(prompts) if prompt.modality == "text"]
        found[:, texts] = exceptional(scores[:, texts], others)
        if sounds and isinstance(self.model, NamesSounds):
            directions = torch.stack([prompts[place].direction for place in sounds]).float()
            found[:, sounds] = exceptional(others, others) @ self.name_weights(directions).T
        return found

    def label_scores(self, images: Tensor) -> Tensor:
        """Cosines `[B, N]` of image embeddings `[B, D]` with the labels of the reference."""
        return images @ self._texts(self.model.encode_text, self.labels).T

    def name_weights(self, sounds: Tensor) -> Tensor:
        """The probability of each label as a name of sounds with the unit-norm embeddings `[P, D]`: `[P, N]`."""
        assert isinstance(self.model, NamesSounds)
        names = self._names(self.model.encode_text_for_sounds, self.labels)
        return torch.softmax(self.model.naming_scale * sounds @ names.T, dim=-1)


def exceptional(scores: Tensor, others: Tensor) -> Tensor:
    """How improbable it is that one of N labels scores as high by chance, `[B, P]` in (0, 1).

    Args:
        scores: of P prompts with B images, `[B, P]`.
        others: of N labels with the same images, `[B, N]`; their distribution is taken to be normal.
    """
    deviation = others.std(1, keepdim=True).clamp_min(torch.finfo(others.dtype).tiny)
    z = (scores - others.mean(1, keepdim=True)) / deviation
    expected = others.shape[1] * torch.special.ndtr(-z)
    return 1 / (1 + expected**2)


# ------------------------------------------------------------------ fitted calibrations


def fit_calibration(scores: Tensor, present: Tensor) -> Calibration:
    """The logistic regression of presence on scores (Platt, 1999), by Newton's method in float64.

    Args:
        scores: `[n]`.
        present: bool `[n]`.

    Raises:
        InputError: one of the two outcomes is missing, or a score is not finite.
    """
    values, outcome = scores.double().flatten(), present.double().flatten()
    if not torch.isfinite(values).all():
        raise InputError("some scores are not finite; finite ones are expected")
    positives = int(outcome.sum())
    if not 0 < positives < len(outcome):
        raise InputError("all pairs are present, or none is; pairs of both are expected")
    # Platt's targets keep the scale finite where scores separate the outcomes
    targets = torch.where(outcome > 0, (positives + 1) / (positives + 2), 1 / (len(outcome) - positives + 2))
    mean, deviation = values.mean(), values.std().clamp_min(1e-12)
    design = torch.stack([(values - mean) / deviation, torch.ones_like(values)], dim=1)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(100):
        probabilities = torch.sigmoid(design @ weights)
        gradient = design.T @ (probabilities - targets)
        curvature = (design * (probabilities * (1 - probabilities))[:, None]).T @ design
        step = torch.linalg.solve(curvature + 1e-9 * torch.eye(2, dtype=torch.float64), gradient)
        weights = weights - step * min(1.0, 2.0 / float(step.norm().clamp_min(1e-12)))
        if float(step.norm()) < 1e-10:
            break
    scale = float(weights[0] / deviation)
    return Calibration(scale, float(weights[1] - scale * mean))


def calibration_path(model: str) -> Path:
    """Where the fitted calibration of a model is kept."""
    return cache_folder() / "calibrations" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', model)}.json"


def fitted_calibrations(model: str) -> dict[str, Calibration]:
    """What `avgrad calibrate` has fitted to a model, by modality ("text", "sound"); empty if it has not.

    Raises:
        InputError: the file is damaged.
    """
    path = calibration_path(model)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["model"] != model:
            return {}
        found = {name: Calibration(float(v["scale"]), float(v["bias"])) for name, v in content["calibrations"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no calibration ({error}); `avgrad calibrate {model} ...` writes a new one"
        ) from None
    return found


def write_calibrations(model: str, calibrations: Mapping[str, Calibration], **more: Any) -> Path:
    """Keeps calibrations of a model for `Presence`; returns the file."""
    content = {"model": model, "calibrations": {name: own._asdict() for name, own in calibrations.items()}, **more}
    path = calibration_path(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
