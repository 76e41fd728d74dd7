"""Texts to token ids: CLIP's byte-pair tokenizer, and templates around labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from avgrad.errors import MediaError


class TextEncoder(Protocol):
    """A model that understands text."""

    def encode_text(self, texts: Sequence[str]) -> Tensor: ...


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenize(texts: Sequence[str], context_length: int = 77) -> Tensor:
    """CLIP token ids, padded with 0 and cut to length with the end-of-text token kept.

    Args:
        texts: P texts.
        context_length: number of tokens of each.

    Returns:
        `[P, context_length]`, int64.
    """
    tokens: Tensor = _tokenizer()(list(texts), context_length=context_length)
    return tokens


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts, stripped.

    Raises:
        MediaError: a text that is none, or is empty.
    """
    for text in texts:
        if not isinstance(text, str):
            raise MediaError(f"a text prompt is {type(text).__name__}; a string such as 'a dog' is expected")
        if not text.strip():
            raise MediaError("a text prompt is empty; words such as 'a dog' are expected")
    return [text.strip() for text in texts]


def encode_labels(model: TextEncoder, labels: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
    """One embedding per label: the mean of the unit-norm embeddings of its templates, normalized again.

    Args:
        model: has `encode_text`.
        labels: P labels, such as "dog".
        templates: texts with `{}` where the label goes, such as "a photo of a {}".

    Returns:
        Unit-norm `[P, D]`, float32.

    Raises:
        MediaError: an empty label, or a template without `{}`.
    """
    labels = check_texts(labels)
    for template in templates:
        if "{}" not in template:
            raise MediaError(f"the template {template!r} has no {{}} where the label goes, as in 'a photo of a {{}}'")
    texts = [template.replace("{}", label) for label in labels for template in templates]
    embeddings = model.encode_text(texts).unflatten(0, (len(labels), len(templates)))
    return F.normalize(embeddings.mean(1), dim=-1) if len(templates) > 1 else embeddings[:, 0]


__all__ = ["TextEncoder", "check_texts", "encode_labels", "tokenize"]
