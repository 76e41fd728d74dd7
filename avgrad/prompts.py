"""Prompts: what is looked for, in any modality, as one embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prompt:
    """One thing to look for: an embedding with its label and modality.

    Prompts combine as vectors do: `0.5 * siren + text`, `dog - cat`. Only the direction of the result matters.

    Attributes:
        embedding: `[D]`, float32.
        label: what to call it.
        modality: "audio", "speech", "text", "image", "embedding" or, of a combination, "mixed".

    >>> import torch
    >>> dog = Prompt(torch.tensor([1.0, 0.0]), "dog.wav", "audio")
    >>> puppy = Prompt(torch.tensor([0.0, 1.0]), "a puppy", "text")
    >>> both = dog + 0.5 * puppy
    >>> both.label, both.modality, both.direction
    ('dog.wav + 0.5 a puppy', 'mixed', tensor([0.8944, 0.4472]))
    """

    embedding: Tensor
    label: str
    modality: str

    @property
    def direction(self) -> Tensor:
        """The embedding at unit length, `[D]`: what a heatmap is made of."""
        return F.normalize(self.embedding, dim=-1)

    def _combined(self, other: Prompt, embedding: Tensor, sign: str) -> Prompt:
        modality = self.modality if self.modality == other.modality else "mixed"
        return Prompt(embedding, f"{self.label} {sign} {other.label}", modality)

    def __add__(self, other: Prompt) -> Prompt:
        if not isinstance(other, Prompt):
            return NotImplemented
        return self._combined(other, self.embedding + other.embedding, "+")

    def __sub__(self, other: Prompt) -> Prompt:
        if not isinstance(other, Prompt):
            return NotImplemented
        return self._combined(other, self.embedding - other.embedding, "-")

    def __mul__(self, weight: float) -> Prompt:
        if not isinstance(weight, int | float):
            return NotImplemented
        label = f"({self.label})" if " + " in self.label or " - " in self.label else self.label
        return Prompt(self.embedding * weight, f"{weight:g} {label}", self.modality)

    __rmul__ = __mul__
