"""The model as the runner and the tasks see it: prompts become embeddings, and classes become logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from avgrad.encoders.text import encode_labels
from avgrad.errors import PromptError, UnsupportedModelError

TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class ClassPrompt:
    """A prompt that is one of the task's classes.

    Attributes:
        index: of the class; None for the one that the model predicts for the image.
    """

    index: int | None


Prompt = Tensor | str | ClassPrompt


class Encoder:
    """A model and the embeddings of what it was asked before.

    Attributes:
        model: as `avgrad.load` gives it.

    Args:
        model: the model.
        class_names: the classes of `ClassPrompt`.
    """

    def __init__(self, model: Any, class_names: Sequence[str] = ()) -> None:
        self.model = model
        self._class_names = class_names
        self._texts: dict[str, Tensor] = {}

    def __call__(self, prompt: Prompt, pixels: Tensor) -> Tensor:
        """The embedding of a prompt, `[D]`.

        Args:
            prompt: the prompt.
            pixels: the preprocessed image that it belongs to, `[3, h, w]`.
        """
        if isinstance(prompt, Tensor):
            embedding: Tensor = self.model.encode_audio([prompt])[0]
            return embedding
        if isinstance(prompt, ClassPrompt):
            index = int(self.logits(pixels[None]).argmax()) if prompt.index is None else prompt.index
            return self.classes[index]
        if prompt not in self._texts:
            self._texts[prompt] = self.model.encode_text([prompt])[0]
        return self._texts[prompt]

    def batch(self, prompts: Sequence[Sequence[Prompt]], pixels: Tensor) -> list[Tensor]:
        """The embeddings of each image's prompts, `[P, D]` each; sounds are encoded together.

        Args:
            prompts: of each image.
            pixels: the preprocessed images, `[B, 3, h, w]`.
        """
        sounds = [prompt for own in prompts for prompt in own if isinstance(prompt, Tensor)]
        encoded = iter(self.model.encode_audio(sounds) if sounds else ())
        return [
            torch.stack([next(encoded) if isinstance(prompt, Tensor) else self(prompt, image) for prompt in own])
            for own, image in zip(prompts, pixels, strict=True)
        ]

    @property
    def _is_classifier(self) -> bool:
        return not self.model.vision.head.cosine  # texts are its classes

    @cached_property
    def classes(self) -> Tensor:
        """The embeddings of the task's classes, `[C, D]`.

        Raises:
            UnsupportedModelError: a classifier has other classes.
        """
        if not self._is_classifier:
            return encode_labels(self.model, list(self._class_names), TEMPLATE)
        count = len(self._class_names)
        try:
            embeddings: Tensor = self.model.encode_text([str(index) for index in range(count)])
            self.model.encode_text([str(count)])
        except PromptError as error:
            if f"no class {count}" in str(error):
                return embeddings
            raise UnsupportedModelError(f"{error}; a classifier of the benchmark's {count} classes is needed") from None
        raise UnsupportedModelError(
            f"{self.model.name} has more than the benchmark's {count} classes; a classifier of those is needed"
        )

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """A score of each class, `[B, C]`: the logits of a classifier, or cosines of image and class embeddings.

        Args:
            pixels: preprocessed images, `[B, 3, h, w]`.
        """
        pixels = pixels.to(self.model.device, self.model.dtype)
        if self._is_classifier and len(self.classes):
            output = self.model.model(pixels)
            scores: Tensor = getattr(output, "logits", output)  # transformers' own output, or timm's tensor
            return scores.float().cpu()
        return (self.model.encode_image(pixels).float() @ self.classes.T.float()).cpu()
