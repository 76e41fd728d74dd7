"""Texts to token ids: CLIP's byte-pair tokenizer, and templates around labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.errors import PromptError

BATCH = 256  # texts encoded at once, which bounds the memory


class TextEncoder(Protocol):
    """A model with a text tower."""

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
        PromptError: a text that is no string, is empty or is not valid Unicode.
    """
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(f"text is of type {type(text).__name__}; a string such as 'a dog' is expected")
        if not text.strip():
            raise PromptError("text is empty; give at least one word")
        if any("\ud800" <= character <= "\udfff" for character in text):  # how Python keeps bytes that are not UTF-8
            raise PromptError(f"text {text!a} is not valid Unicode; UTF-8 text is expected")
    return [text.strip() for text in texts]


def check_templates(templates: str | Sequence[str]) -> list[str]:
    """The templates around a label, as a list.

    Raises:
        PromptError: no template, or one without `{}`.
    """
    given = [templates] if isinstance(templates, str) else list(templates)
    if not given:
        raise PromptError("templates are empty; give at least one, such as 'a photo of a {}'")
    for template in given:
        if not isinstance(template, str) or "{}" not in template:
            raise PromptError(f"template {template!r} has no {{}} where the label goes, as in 'a photo of a {{}}'")
    return given


def encode_labels(model: TextEncoder, labels: Sequence[str], templates: str | Sequence[str] = "{}") -> Tensor:
    """One embedding per label: the mean of the unit-norm embeddings of its templates, normalized again.

    Args:
        model: has `encode_text`.
        labels: P labels, such as "dog".
        templates: a text, or several, with `{}` where the label goes, such as "a photo of a {}".

    Returns:
        Unit-norm `[P, D]`, float32.

    Raises:
        PromptError: an empty label, or a template without `{}`.
    """
    given, templates = check_texts(labels), check_templates(templates)
    texts = [template.replace("{}", label) for label in given for template in templates]
    parts = [model.encode_text(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    embeddings = torch.cat(parts).unflatten(0, (len(given), len(templates)))
    return F.normalize(embeddings.mean(1), dim=-1) if len(templates) > 1 else embeddings[:, 0]


__all__ = ["TextEncoder", "check_templates", "check_texts", "encode_labels", "tokenize"]
