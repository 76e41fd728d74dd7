"""The result: one heatmap and one score per prompt, and how to look at them and keep them."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from avgrad.engine.attribute import normalized
from avgrad.errors import InputError
from avgrad.overlay import blend
from avgrad.prompts import Prompt

if TYPE_CHECKING:
    from PIL import Image

Absent = Literal["grey"]
OVERLAYS = 32  # overlays that `save` writes by default
SIDE = 1024  # of the longer side of a saved overlay, in pixels


def file_words(label: str) -> str:
    """A label as a part of a file's name; empty where nothing in it can be.

    >>> file_words("what barks?")
    'what_barks'
    """
    words = re.sub(r"[^\w.-]+", "_", label).strip("._")
    return words.encode()[:90].decode(errors="ignore")  # file systems allow 255 bytes for the whole name


@dataclass(frozen=True, eq=False)
class Localization:
    """Where each of P prompts is in one image of H x W pixels.

    `heatmaps`, float32 `[P, H, W]`, are upsampled from `maps` when they are first read; overlays, masks, boxes and
    peaks are made of them. Each is min-max normalized by its own smallest and largest value, so some place is always
    hot, also where the prompt is not in the image: `scores` tell.

    Attributes:
        image: the image, RGB.
        prompts: the P prompts.
        scores: float32 `[P]`, cosine similarity of image and prompt, in [-1, 1]. Compare prompts of one modality with
            each other: how high a score is depends on the model and the modality.
        maps: float32 `[P, gh, gw]`, raw maps on the patch grid, summed over layers and corrected.
        layer_maps: float32 `[P, L, gh, gw]`, raw maps of the layers (L is 1 for methods that look at one layer, or
            multiply them).
        layers: the layers that were explained.
        model: name of the model.
        method: name of the attribution method.
        options: what else the heatmaps depend on: `pooling`, `size`, `correction` and the method's own options.
            `avgrad.localize(image, model=..., method=..., layers=..., **options)` repeats them.
        normalized_first: whether maps are min-max normalized before they are upsampled instead of after.
        name: of the image; empty where it has none.
        device: what the model computed on.
        dtype: what it computed in.
        versions: of avgrad and torch.
        seconds: what each stage took.
        refinement: how heatmaps are made to follow edges, see `refine`; empty for not.
        presence: float32 `[P]`, the probability that each prompt is in the image, NaN where it is unknown; None without
            a calibration of the model's scores, see `avgrad.presence`.
    """

    image: Image.Image
    prompts: list[Prompt]
    scores: Tensor
    maps: Tensor
    layer_maps: Tensor
    layers: list[int]
    model: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    normalized_first: bool = False
    name: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    refinement: Mapping[str, Any] = field(default_factory=dict)
    presence: Tensor | None = None
    # fields that are kept in the JSON as they are
    kept: ClassVar[tuple[str, ...]] = (
        *("layers", "model", "method", "normalized_first", "name", "device", "dtype", "options", "versions", "seconds"),
        "refinement",
    )

    # ------------------------------------------------------------------ heatmaps

    @cached_property
    def heatmaps(self) -> Tensor:
        """Float32 `[P, H, W]` in [0, 1], of the size of the image."""
        return self._upsampled(self.maps)

    def _upsampled(self, maps: Tensor) -> Tensor:
        width, height = self.image.size
        heatmaps = normalized(maps[None], (height, width), self.normalized_first)[0]
        if self.refinement:
            from avgrad.refine import refine

            grid = maps.shape[-2], maps.shape[-1]
            method, options = self.refinement["method"], {k: v for k, v in self.refinement.items() if k != "method"}
            for heatmap in heatmaps:
                heatmap.copy_(torch.from_numpy(refine(self.image, heatmap.numpy(), grid, method, options)))
        return heatmaps

    def refine(self, method: str = "guided", **options: Any) -> Localization:
        """The same result with heatmaps that follow the edges of the image; masks, boxes and overlays as well.

        Args:
            method: "guided" (the guided filter), or with `pip install 'avgrad[refine]'` "grabcut" or "random_walker",
                or "sam2" where weights of SAM 2.1 are in the cache of huggingface_hub.
            **options: the method's own, see its function in `avgrad.refine`.

        Raises:
            InputError: there is no such method or option; when heatmaps are read, what the method needs is not here.
        """
        from avgrad.refine import check_refinement

        return replace(self, refinement={"method": method, **check_refinement(method, options)})

    def heatmap(self, index: int) -> Tensor:
        """The heatmap of one prompt, `[H, W]`, without those of the others."""
        if "heatmaps" in self.__dict__:  # they have been read, and are kept
            return self.heatmaps[index]
        return self._upsampled(self.maps[index][None])[0]

    def mask(self, threshold: float = 0.5) -> Tensor:
        """Where the heatmaps reach a threshold in [0, 1]: bool `[P, H, W]`."""
        _check_threshold(threshold)
        return self.heatmaps >= threshold

    def boxes(self, threshold: float = 0.5) -> list[list[tuple[int, int, int, int]]]:
        """Boxes around the connected parts of each prompt's mask (pixels that share an edge), the largest part first.

        Args:
            threshold: of the heatmap, in [0, 1].

        Returns:
            For each prompt its boxes `(x0, y0, x1, y1)` in pixels; x1 and y1 are outside, as in `PIL.Image.crop`.
        """
        _check_threshold(threshold)
        return [part_boxes((self.heatmap(index) >= threshold).numpy()) for index in range(len(self.prompts))]

    def peak(self, index: int) -> tuple[int, int]:
        """Column and row of the hottest pixel of prompt `index`, the first where several are."""
        return self._peaks[index]

    @cached_property
    def _peaks(self) -> list[tuple[int, int]]:
        if self.refinement:
            flat = [int(self.heatmap(index).argmax()) for index in range(len(self.prompts))]
            return [(place % self.image.width, place // self.image.width) for place in flat]
        return hottest_pixels(self.maps, (self.image.height, self.image.width))

    def overlay(
        self, index: int = 0, opacity: float = 0.75, colormap: str = "turbo", absent: Absent | None = None
    ) -> Image.Image:
        """The image with the heatmap of prompt `index` laid over it, as an RGB image of the same size.

        Args:
            index: which prompt.
            opacity: of the hottest place, in [0, 1]; cold places stay as they are.
            colormap: a name that matplotlib knows.
            absent: "grey" to show a prompt in shades of grey where its presence is below 0.5.

        Raises:
            InputError: there is no such colormap, the opacity is out of range, or `absent` is something else.
        """
        if absent not in (None, "grey"):
            raise InputError(f"absent={absent!r} is not accepted; expected 'grey' or None")
        if absent == "grey" and self.presence is not None and self.presence[index] < 0.5:
            colormap = "gray"
        return blend(self.image, self.heatmap(index).numpy(), opacity, colormap)

    def resized(self, side: int) -> Localization:
        """The same result with a smaller image, and so with smaller heatmaps.

        Args:
            side: the longer side in pixels; an image that is not larger stays as it is.
        """
        from PIL import Image

        if max(self.image.size) <= side:
            return self
        scale = side / max(self.image.size)
        size = max(1, round(self.image.width * scale)), max(1, round(self.image.height * scale))
        return replace(self, image=self.image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3))

    # ------------------------------------------------------------------ in a console and in a notebook

    def __repr__(self) -> str:
        found = [
            f"{_short(prompt.label)!r} ({prompt.modality}) {score:.3f}"
            for prompt, score in zip(self.prompts[:3], self.scores[:3].tolist(), strict=True)
        ]
        more = [f"{len(self.prompts) - 3} more"] if len(self.prompts) > 3 else []
        image = " ".join(filter(None, [_short(self.name), f"{self.image.width}x{self.image.height}"]))
        return f"Localization({image}, {self.model}, {self.method}: {', '.join(found + more)})"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the overlays of the first prompts side by side."""
        from avgrad.panels import prompt_panel

        stream = io.BytesIO()
        prompt_panel(self).save(stream, "PNG")
        return stream.getvalue()

    # ------------------------------------------------------------------ on disk

    def to_dict(self) -> dict[str, Any]:
        """Everything but images and maps, ready for JSON."""
        return {
            "model": self.model,
            "method": self.method,
            "layers": self.layers,
            "options": plain_options(self.options),
            "name": self.name,
            "image_size": list(self.image.size),
            "prompts": [
                {
                    "label": prompt.label,
                    "modality": prompt.modality,
                    "score": round(score, 6),
                    "presence": self._rounded_presence(index),
                    "peak": list(self.peak(index)),
                }
                for index, (prompt, score) in enumerate(zip(self.prompts, self.scores.tolist(), strict=True))
            ],
            "normalized_first": self.normalized_first,
            "refinement": dict(self.refinement),
            "device": self.device,
            "dtype": self.dtype,
            "versions": dict(self.versions),
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
        }

    def _rounded_presence(self, index: int) -> float | None:
        value = math.nan if self.presence is None else float(self.presence[index])
        return None if math.isnan(value) else round(value, 6)

    def arrays(self, heatmaps: bool = False) -> dict[str, Any]:
        """What the .npz of `save` holds, by name.

        Args:
            heatmaps: with the heatmaps at full size, float16 `[P, H, W]`.
        """
        arrays = {
            "maps": self.maps.numpy(),
            "layer_maps": self.layer_maps.numpy(),
            "layers": np.array(self.layers),
            "scores": self.scores.numpy(),
            "labels": np.array([str(prompt.label) for prompt in self.prompts]),
            "embeddings": torch.stack([prompt.embedding.float() for prompt in self.prompts]).numpy(),
        }
        return {"heatmaps": self.heatmaps.half().numpy(), **arrays} if heatmaps else arrays

    def to_json(self, **more: Any) -> bytes:
        """What the .json of `save` holds: `to_dict` and further entries, in UTF-8."""
        document = json.dumps({**self.to_dict(), **more}, indent=2, ensure_ascii=False)
        return (document + "\n").encode(errors="backslashreplace")  # labels may hold bytes that are no UTF-8

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        overlays: int | None = OVERLAYS,
        side: int = SIDE,
        heatmaps: bool = False,
        absent: Absent | None = None,
        **more: Any,
    ) -> list[Path]:
        """Writes overlays (`overlay_0_LABEL.jpg`, ...), `image.jpg` or `.png`, `heatmaps.npz` and `result.json`.

        The .npz holds `maps` `[P, gh, gw]`, `layer_maps` `[P, L, gh, gw]`, `scores`, `embeddings` (all float32),
        `layers` and `labels`. `load` upsamples heatmaps from the maps again, so they are written only if asked for.
        Each file is complete as soon as it has its name, `result.json` last.

        Args:
            folder: made where it is missing.
            overlays: write those of so many prompts, the first ones; None for all.
            side: the longer side of an overlay in pixels; smaller images keep their size.
            heatmaps: also write `heatmaps` at full size into the .npz, float16 `[P, H, W]`: large and slow.
            absent: as in `overlay`.
            **more: further entries of the JSON.

        Returns:
            The files written.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        from avgrad.result_files import save

        return save(self, Path(folder), overlays, side, heatmaps, absent, more)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Localization:
        """The result that `save` wrote: the same heatmaps; the image as it was saved, a JPEG in most cases.

        Raises:
            InputError: the folder does not hold one, or it is damaged.
        """
        from avgrad.result_files import load

        return load(cls, Path(folder))


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON takes them: what is no number, text or None (a dtype) by its name."""
    return {
        name: value if isinstance(value, bool | int | float | str | None) else str(value)
        for name, value in options.items()
    }


def part_boxes(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes `(x0, y0, x1, y1)` around the connected parts of a mask `[H, W]`, as `Localization.boxes` gives them."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    areas = np.bincount(labels.ravel())[1:]
    slices = ndimage.find_objects(labels)
    parts = [slices[part] for part in np.argsort(-areas, kind="stable")]
    return [(x.start, y.start, x.stop, y.stop) for y, x in parts]


def hottest_pixels(maps: Tensor, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Column and row of the first of the hottest pixels of each map `[P, gh, gw]`, upsampled to `size`.

    Nothing is upsampled: between two cells of the grid heatmaps are linear in x and in y, so that the hottest pixel is
    the first or the last one between two cells.
    """
    rows, down = _ends(maps.shape[-2], size[0])
    columns, right = _ends(maps.shape[-1], size[1])
    values = (down @ maps.double() @ right.T).flatten(1)
    places = (divmod(place, len(columns)) for place in values.argmax(1).tolist())
    return [(columns[x], rows[y]) for y, x in places]


def _short(label: str) -> str:
    return label if len(label) <= 40 else label[:39] + "…"


def _ends(cells: int, pixels: int) -> tuple[list[int], Tensor]:
    """The first and the last pixel between each two cells of a row that is bilinearly upsampled.

    Returns:
        Their places, ascending, and what they take from each cell, float64 `[len(places), cells]`.
    """
    position = ((torch.arange(pixels, dtype=torch.float64) + 0.5) * cells / pixels - 0.5).clamp(0, cells - 1)
    lower = position.long()
    changed = lower.diff() != 0
    ends = torch.ones(pixels, dtype=torch.bool)
    ends[1:-1] = changed[1:] | changed[:-1]
    places = ends.nonzero()[:, 0]
    position, lower = position[places], lower[places]
    share = (position - lower)[:, None]
    one_hot = torch.eye(cells, dtype=torch.float64)
    return places.tolist(), one_hot[lower] * (1 - share) + one_hot[(lower + 1).clamp_max(cells - 1)] * share


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold} is out of range; expected a number in [0, 1]")


@cache
def versions() -> dict[str, str]:
    """The versions of avgrad and torch."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("avgrad")
    except PackageNotFoundError:  # run from a clone that is not installed
        own = "unknown"
    return {"avgrad": own, "torch": str(torch.__version__)}
