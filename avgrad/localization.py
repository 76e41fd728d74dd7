"""The result: one heatmap and one score per prompt, and how to look at them and keep them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from avgrad.files import write_atomic
from avgrad.prompts import Prompt

if TYPE_CHECKING:
    from PIL import Image


def blend(image: Image.Image, heat: np.ndarray, opacity: float = 0.75, colormap: str = "turbo") -> Image.Image:
    """An image with a heatmap `[H, W]` in [0, 1] laid over it, RGB; see `Localization.overlay`."""
    from matplotlib import colormaps
    from PIL import Image

    colors = colormaps[colormap](heat)[..., :3] * 255
    # the square root lets the image show through where it is cold and still marks what is half warm
    weight = opacity * np.sqrt(heat)[..., None]
    blended = np.asarray(image) * (1 - weight) + colors * weight
    return Image.fromarray(np.rint(blended).astype(np.uint8))


def file_words(label: str) -> str:
    """A label as a part of a file's name; empty where nothing in it can be.

    >>> file_words("what barks?")
    'what_barks'
    """
    return re.sub(r"[^\w.-]+", "_", label).strip("._")[:60]


@dataclass(frozen=True, eq=False)
class Localization:
    """Where each of P prompts is in one image of H x W pixels.

    Attributes:
        image: the image, RGB.
        prompts: the P prompts.
        heatmaps: float32 `[P, H, W]`, each min-max normalized by its own smallest and largest value: something is
            always hot, also where the prompt is not in the image. `scores` tell.
        scores: float32 `[P]`, cosine similarity of image and prompt, in [-1, 1]. Compare prompts of one modality with
            each other: how high a score is depends on the model and the modality.
        layers: the L layers that were explained.
        layer_maps: float32 `[P, L, gh, gw]`, raw, on the patch grid (L is 1 for methods that look at one layer).
        model: name of the model.
        method: name of the attribution method.
        seconds: what each stage took.
    """

    image: Image.Image
    prompts: list[Prompt]
    heatmaps: Tensor
    scores: Tensor
    layers: list[int]
    layer_maps: Tensor
    model: str
    method: str
    seconds: dict[str, float] = field(default_factory=dict)

    def mask(self, threshold: float = 0.5) -> Tensor:
        """Where the heatmaps reach a threshold in [0, 1]: bool `[P, H, W]`."""
        return self.heatmaps >= threshold

    def peak(self, index: int) -> tuple[int, int]:
        """Column and row of the hottest pixel of prompt `index`."""
        row, column = divmod(int(self.heatmaps[index].argmax()), self.heatmaps.shape[-1])
        return column, row

    def overlay(self, index: int = 0, opacity: float = 0.75, colormap: str = "turbo") -> Image.Image:
        """The image with the heatmap of prompt `index` laid over it, as an RGB image of the same size.

        Args:
            index: which prompt.
            opacity: of the hottest place, in [0, 1]; cold places stay as they are.
            colormap: a name that matplotlib knows.
        """
        return blend(self.image, self.heatmaps[index].numpy(), opacity, colormap)

    def to_dict(self) -> dict[str, Any]:
        """Everything but images and maps, ready for JSON."""
        width, height = self.image.size
        return {
            "model": self.model,
            "method": self.method,
            "layers": self.layers,
            "image_size": [width, height],
            "prompts": [
                {
                    "label": prompt.label,
                    "modality": prompt.modality,
                    "score": round(float(score), 6),
                    "peak": list(self.peak(index)),
                }
                for index, (prompt, score) in enumerate(zip(self.prompts, self.scores, strict=True))
            ],
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
        }

    def arrays(self) -> dict[str, Any]:
        """What the .npz of `save` holds, by name."""
        return {
            "heatmaps": self.heatmaps.half().numpy(),
            "layer_maps": self.layer_maps.numpy(),
            "layers": np.array(self.layers),
            "scores": self.scores.numpy(),
            "labels": np.array([prompt.label for prompt in self.prompts]),
        }

    def to_json(self, **more: Any) -> bytes:
        """What the .json of `save` holds: `to_dict` and further entries, in UTF-8."""
        return (json.dumps({**self.to_dict(), **more}, indent=2, ensure_ascii=False) + "\n").encode()

    def save(self, folder: str | os.PathLike[str], **more: Any) -> list[Path]:
        """Writes an overlay per prompt (`overlay_0_LABEL.png`), `heatmaps.npz` and `result.json`.

        The .npz holds `heatmaps` `[P, H, W]` (float16), `layer_maps` `[P, L, gh, gw]` (float32), `layers`, `scores` and
        `labels`. Each file is complete as soon as it has its name.

        Args:
            folder: made where it is missing.
            **more: further entries of the JSON.

        Returns:
            The files written.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for index, prompt in enumerate(self.prompts):
            words = file_words(prompt.label)
            save_overlay = partial(self.overlay(index).save, format="PNG")
            files.append(write_atomic(folder / f"overlay_{index}_{words}.png", save_overlay))
        arrays = self.arrays()
        files.append(write_atomic(folder / "heatmaps.npz", lambda file: np.savez_compressed(file, **arrays)))
        document = self.to_json(**more)
        files.append(write_atomic(folder / "result.json", document))
        return files
