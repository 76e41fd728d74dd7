"""Held-out figures during training; `python -m eval scenes` gives those of the evaluation protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from avgrad.encoders.audio import SAMPLE_RATE
from avgrad.encoders.image import CLIP_MEAN, CLIP_STD
from avgrad.engine.attribute import attribute
from avgrad.media import open_audio
from avgrad.models.imagebind import ImageBind
from avgrad.scenes.classes import CLASSES
from avgrad.scenes.images import draw_scene, scene_rng
from avgrad.scenes.sounds import mix_sound
from avgrad.scenes.speech import spoken
from avgrad.scenes.texts import texts


class HeldOut:
    """Scenes, sounds, voices and texts that training never uses.

    Args:
        number: number of scenes.
        size: side of their images in pixels.
    """

    def __init__(self, number: int, size: int) -> None:
        scenes = [draw_scene(scene_rng("validation", 0, index), size) for index in range(number)]
        mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2) / 255
        self.pixels = (images - mean) / std
        self.classes = torch.tensor([scene.classes[0] for scene in scenes])
        self.masks = torch.from_numpy(np.stack([scene.masks[0] for scene in scenes]))
        self.present = torch.zeros(number, len(CLASSES), dtype=torch.bool)
        for index, scene in enumerate(scenes):
            self.present[index, scene.classes] = True
        rng = scene_rng("validation prompts", 0, 0)
        self.sounds, self.speech = [], []
        for object_class in range(len(CLASSES)):
            others = [int(rng.choice([k for k in range(len(CLASSES)) if k != object_class]))]
            self.sounds.append([mix_sound(object_class, rng, 4.0, others, SAMPLE_RATE) for _ in range(4)])
            self.speech.append([spoken(object_class, rng, "heldout").waveform for _ in range(4)])

    @torch.no_grad()
    def figures(self, model: ImageBind, modalities: Sequence[str] = ("sound", "speech", "text")) -> dict[str, float]:
        """Per modality: mean IoU of LeGrad masks at threshold 0.5, and ROC-AUC of present against absent classes."""
        figures: dict[str, float] = {}
        if not modalities:
            return figures
        images = torch.cat([model.encode_image(part) for part in self.pixels.split(50)])
        for name in modalities:
            embeddings = self._embeddings(model, name)
            chosen = embeddings[self.classes, torch.arange(len(self.classes)) % embeddings.shape[1]]
            heatmaps = torch.cat(
                [
                    attribute(model.vision, pixels, prompts[:, None])[:, 0]
                    for pixels, prompts in zip(self.pixels.split(50), chosen.split(50), strict=True)
                ]
            )
            masks = heatmaps >= 0.5
            union = (masks | self.masks).sum((1, 2))
            figures[f"{name}_iou"] = float(((masks & self.masks).sum((1, 2)) / union).mean())
            figures[f"{name}_auc"] = float(binary_auroc(images @ embeddings.mean(1).T, self.present))
        return figures

    @torch.no_grad()
    def accuracy(self, model: ImageBind, anchors: Tensor) -> dict[str, float]:
        """Share of sounds and of spoken names whose nearest anchor `[K, D]` is their own class's."""
        accuracy = {}
        for name in ("sound", "speech"):
            nearest = (self._embeddings(model, name) @ anchors.T).argmax(-1)
            accuracy[f"{name}_accuracy"] = float((nearest == torch.arange(len(CLASSES))[:, None]).float().mean())
        return accuracy

    def _embeddings(self, model: ImageBind, modality: str) -> Tensor:
        """Embeddings of each class's held-out prompts, `[K, n, D]`."""
        if modality == "text":
            return torch.stack([model.encode_text(texts(k, "heldout")).mean(0) for k in range(len(CLASSES))])[:, None]
        sounds = self.sounds if modality == "sound" else self.speech
        return torch.stack(
            [torch.stack([model.encode_sound(open_audio((wave, SAMPLE_RATE))) for wave in waves]) for waves in sounds]
        )
