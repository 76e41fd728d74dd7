"""Models by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from avgrad.errors import UnsupportedModelError
from avgrad.models.checkpoints import checkpoint_path

if TYPE_CHECKING:
    from avgrad.models.imagebind import ImageBind
    from avgrad.models.open_clip import OpenClip
    from avgrad.models.timm import TimmModel

MINI = Path(__file__).with_name("mini") / "mini.safetensors"


def load(
    name: str,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    towers: Sequence[str] = ("vision", "audio", "text"),
) -> ImageBind | OpenClip | TimmModel:
    """A model by name, ready to use.

    Args:
        name: "mini" (bundled, works offline), "imagebind_huge", "open_clip:ARCHITECTURE/WEIGHTS" such as
            "open_clip:ViT-B-16/laion2b_s34b_b88k", or a classifier of timm, "timm:NAME" such as
            "timm:vit_base_patch16_224", whose prompts are its classes.
        checkpoint: a file to take the weights from, instead of the one in the cache.
        device: where to put the model.
        dtype: of its weights.
        towers: which of an ImageBind model's towers to load; the others take neither time nor memory.

    Raises:
        UnsupportedModelError: there is no such model, or it cannot be explained.
        CheckpointError: its weights are not here or cannot be read.
    """
    if name in ("mini", "imagebind_huge"):
        from avgrad.models.imagebind import ImageBind

        path = checkpoint or (MINI if name == "mini" else checkpoint_path(name))
        return ImageBind.from_checkpoint(path, towers=towers, dtype=dtype, device=device, name=name)
    library, _, rest = name.partition(":")
    architecture, _, weights = rest.partition("/")
    if library == "open_clip" and architecture and (weights or checkpoint):
        from avgrad.models.open_clip import OpenClip

        return OpenClip.from_pretrained(
            architecture, os.fspath(checkpoint) if checkpoint else weights, device=device, dtype=dtype
        )
    if library == "timm" and rest:
        from avgrad.models.timm import TimmModel

        return TimmModel.from_pretrained(rest, checkpoint=checkpoint, device=device, dtype=dtype)
    raise UnsupportedModelError(
        f"there is no model {name!r}; there are mini, imagebind_huge, open_clip:ARCHITECTURE/WEIGHTS and timm:NAME "
        "(`avgrad models` lists them)"
    )


@dataclass(frozen=True)
class Entry:
    """A line of `avgrad models`: a model's name, the prompts it takes, and whether its weights are here."""

    name: str
    modalities: tuple[str, ...]
    weights: str


def available() -> list[Entry]:
    """The models that can be loaded: our own, ImageBind, and what the view can express of open_clip and timm."""
    huge = checkpoint_path("imagebind_huge")
    entries = [
        Entry("mini", ("audio", "text"), "here (bundled)"),
        Entry("imagebind_huge", ("audio", "text"), "here" if huge.exists() else "`avgrad download imagebind_huge`"),
    ]
    from avgrad.models import open_clip, timm

    for architecture, tags in open_clip.pretrained().items():
        needs = "needs `pip install transformers`; " if open_clip.needs_transformers(architecture) else ""
        entries.append(Entry(f"open_clip:{architecture}/...", ("text",), needs + _weights(tags)))
    for architecture, tags in timm.pretrained().items():
        entries.append(Entry(f"timm:{architecture}.TAG", ("class",), _weights(tags)))
    return entries


def _weights(tags: dict[str, bool]) -> str:
    """Pretrained tags in words: those whose weights are in the cache, and the others."""
    here = [tag for tag, is_here in tags.items() if is_here]
    there = [tag for tag, is_here in tags.items() if not is_here]
    states = [f"here: {', '.join(here)}"] if here else []
    if there:
        states.append(f"fetched when first used: {', '.join(there)}")
    return "; ".join(states)
