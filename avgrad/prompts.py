"""Prompts: what is looked for, in any modality, as one embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch.nn.functional as F
from torch import Tensor

from avgrad.errors import PromptError


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt: an embedding with its label and modality.

    Prompts combine as vectors do: `0.5 * siren + text`, `-dog`, `sum(prompts) / 3`. Only the direction of the result
    matters.

    Attributes:
        embedding: `[D]`, float32.
        label: what to call it.
        modality: "audio", "speech", "text", "image", "embedding" or, of a combination, "mixed".

    Raises:
        PromptError: an embedding that is not a floating-point tensor `[D]`; a combination of embeddings of different
            widths, or with a weight that is not finite.

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

    # numpy's scalars leave `scalar * prompt` to the prompt
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        embedding = self.embedding
        if not isinstance(embedding, Tensor) or not embedding.is_floating_point() or embedding.ndim != 1:
            found = f"{list(embedding.shape)} {embedding.dtype}" if isinstance(embedding, Tensor) else type(embedding)
            raise PromptError(f"the embedding of prompt {self.label!r} is {found}; a float tensor [D] is expected")

    @property
    def direction(self) -> Tensor:
        """The embedding at unit length, `[D]`: what a heatmap is made of."""
        return F.normalize(self.embedding, dim=-1)

    def _combined(self, other: Prompt, sign: str) -> Prompt:
        if len(self.embedding) != len(other.embedding):
            raise PromptError(
                f"prompts {self.label!r} and {other.label!r} have embeddings of widths {len(self.embedding)} and "
                f"{len(other.embedding)}; prompts of one model can be combined"
            )
        added = other.embedding if sign == "+" else -other.embedding
        modality = self.modality if self.modality == other.modality else "mixed"
        return Prompt(self.embedding + added.to(self.embedding), f"{self.label} {sign} {other.label}", modality)

    @property
    def _term(self) -> str:
        """The label as a term that takes a sign or a weight."""
        return f"({self.label})" if " + " in self.label or " - " in self.label else self.label

    def __add__(self, other: Prompt) -> Prompt:
        return self._combined(other, "+") if isinstance(other, Prompt) else NotImplemented

    def __radd__(self, other: int) -> Prompt:
        """`sum(prompts)` begins with 0."""
        return self if isinstance(other, Real) and other == 0 else NotImplemented

    def __sub__(self, other: Prompt) -> Prompt:
        return self._combined(other, "-") if isinstance(other, Prompt) else NotImplemented

    def __neg__(self) -> Prompt:
        return Prompt(-self.embedding, f"-{self._term}", self.modality)

    def __mul__(self, weight: float) -> Prompt:
        if not isinstance(weight, Real):
            return NotImplemented
        number = self._weight(weight)
        return Prompt(self.embedding * number, f"{number:g} {self._term}", self.modality)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Prompt:
        if not isinstance(divisor, Real):
            return NotImplemented
        number = self._weight(divisor)
        if number == 0:
            raise PromptError(f"prompt {self.label!r} is divided by 0")
        return Prompt(self.embedding / number, f"{self._term} / {number:g}", self.modality)

    def _weight(self, weight: Real) -> float:
        number = float(weight)
        if not math.isfinite(number):
            raise PromptError(f"the weight {number} of prompt {self.label!r} is not finite")
        return number
