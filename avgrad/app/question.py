"""Questions: what a visitor looks for, before a model has seen it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

MAX_QUESTIONS = 8  # as many as there are colours to tell them apart
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (160, 160, 160),
)
"""Okabe and Ito's, which colour-blind people can tell apart."""


@dataclass(frozen=True)
class Question:
    """A sound, spoken words or a text.

    Attributes:
        label: what to call it, as the visitor did: shown as it is, never as markup.
        modality: what it is.
        content: a sound file's bytes; of a text, the text in UTF-8.
        mime: of a sound file.
        source: the Python expression that gives the same prompt.
        recorded: whether it comes from the visitor's microphone, so that no file of it exists.
    """

    label: str
    modality: Literal["audio", "speech", "text"]
    content: bytes = field(repr=False)
    mime: str = ""
    source: str = ""
    recorded: bool = False

    @cached_property
    def key(self) -> str:
        """The same for the same question, whatever it is called."""
        return f"{self.modality}-{hashlib.sha256(self.content).hexdigest()}"
