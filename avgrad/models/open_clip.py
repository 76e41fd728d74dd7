"""CLIP, SigLIP, EVA-CLIP, PE-Core and CoCa models of the open_clip library, with their tokenizers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.encoders.image import CLIP_MEAN, CLIP_STD, Preprocess
from avgrad.errors import UnsupportedModelError
from avgrad.models.checkpoints import not_loaded
from avgrad.models.registry import Entry, Family, Source, describe_weights, family
from avgrad.models.view import build_view

if TYPE_CHECKING:
    from PIL import Image


# Names nothing: what a model that pools by attention sees for it, it sees for every prompt (LeGrad paper, B.5).
EMPTY_PROMPT = "a photo of a"


class OpenClip:
    """A model of open_clip with its tokenizer.

    Args:
        model: what `open_clip.create_model` gives; `avgrad.models.open_clip_view` says which image towers are accepted.
        tokenizer: turns a list of texts into token ids, as `open_clip.get_tokenizer` gives; None for CLIP's.
        name: what `avgrad.load` calls the model.

    Raises:
        UnsupportedModelError: the view cannot express the image tower.
    """

    modalities = ("text",)
    calibration = None  # its logit scale compares texts with each other; it tells no probability

    def __init__(
        self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor] | None = None, name: str = "open_clip"
    ) -> None:
        if tokenizer is None:
            from open_clip.tokenizer import SimpleTokenizer

            tokenizer = SimpleTokenizer(context_length=model.context_length)  # type: ignore[arg-type]
        self.name, self.model, self.tokenizer = name, model.eval().requires_grad_(False), tokenizer
        self.vision = build_view(model.get_submodule("visual"), name)
        if self.vision.pooler is not None:
            self.vision = replace(self.vision, empty_prompt=self.encode_text([EMPTY_PROMPT])[0])
        self.preprocess = _preprocess(model.visual, math.lcm(*self.vision.patch_shape))

    @classmethod
    def from_pretrained(
        cls,
        architecture: str,
        weights: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> OpenClip:
        """A model by open_clip's names.

        Args:
            architecture: such as "ViT-B-16".
            weights: a pretrained tag such as "laion2b_s34b_b88k", fetched by open_clip, or the path of a checkpoint.
            device: where to put it.
            dtype: of its weights.

        Raises:
            UnsupportedModelError: there is no such model, or the view cannot express it.
            CheckpointError: its weights could not be fetched or read.
        """
        import open_clip
        from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

        name = f"open_clip:{architecture}/{weights}"
        if architecture not in open_clip.list_models():
            raise UnsupportedModelError(f"open_clip has no model {architecture!r}; one such as ViT-B-16 is expected")
        config = get_pretrained_cfg(architecture, weights)
        if not config and not Path(weights).is_file():
            tags = ", ".join(list_pretrained_tags_by_model(architecture)) or "none"
            raise UnsupportedModelError(
                f"open_clip has no weights {weights!r} for {architecture}; there are: {tags}; or give a checkpoint file"
            )
        if needs_transformers(architecture) and find_spec("transformers") is None:
            raise UnsupportedModelError(
                f"{name} has a tokenizer or a text tower of the transformers package: `pip install transformers`"
            )
        reason = refusal(architecture)
        if reason is not None:  # before anything is fetched
            raise UnsupportedModelError(f"{name} cannot be explained: {reason}")
        try:
            model = open_clip.create_model(
                architecture,
                pretrained=weights,
                device=device,
                force_quick_gelu=bool(config and config.get("quick_gelu")),
            )
            tokenizer = open_clip.get_tokenizer(architecture)
        except Exception as error:  # open_clip, its hub and torch raise many kinds, all for missing weights
            raise not_loaded(name, error) from error
        return cls(model.to(dtype), tokenizer, name)

    @property
    def device(self) -> torch.device:
        return self.vision.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision.dtype

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings `[P, D]`, float32, of P texts."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        encoded: Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        return F.normalize(encoded.float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit-norm embeddings `[B, D]`, float32, of preprocessed pixels `[B, 3, h, w]`."""
        return self.vision.encode(pixels).float()

    def pixels(self, image: Image.Image) -> Tensor:
        """The model's own preprocessing of an image: `[3, size, size]`."""
        return self.preprocess(image)


def _preprocess(visual: Any, patch_size: int) -> Preprocess:
    config = getattr(visual, "preprocess_cfg", None) or {}
    size = visual.image_size
    return Preprocess(
        size=size if isinstance(size, int) else min(size),
        patch_size=patch_size,
        mean=tuple(config.get("mean") or CLIP_MEAN),
        std=tuple(config.get("std") or CLIP_STD),
        resampling="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        squash=config.get("resize_mode") == "squash",
    )


def pretrained() -> dict[str, dict[str, bool]]:
    """open_clip's pretrained models that the view can express.

    Returns:
        For each architecture its pretrained tags, each with whether its weights are in the cache.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    return {
        architecture: {tag: _is_cached(get_pretrained_cfg(architecture, tag)) for tag in tags}
        for architecture in open_clip.list_models()
        if refusal(architecture) is None and (tags := list_pretrained_tags_by_model(architecture))
    }


@cache
def refusal(architecture: str) -> str | None:
    """Why an architecture of open_clip cannot be explained; None if it can. Nothing is fetched."""
    import open_clip

    vision = open_clip.get_model_config(architecture)["vision_cfg"]
    if vision.get("timm_model_name"):
        return _trunk_refusal(vision["timm_model_name"], vision.get("timm_pool") or None)
    try:
        build_view(_shell(architecture), architecture)
    except UnsupportedModelError as error:
        return str(error).partition(": ")[2]
    return None


@cache
def _trunk_refusal(trunk: str, pool: str | None) -> str | None:
    """The same of a trunk of timm, of which one block is built."""
    from avgrad.models.timm_names import refusal as timm_refusal
    from avgrad.models.timm_names import shell
    from avgrad.models.timm_view import trunk_view

    reason = timm_refusal(trunk)
    if reason is None and pool is not None:
        try:
            trunk_view(shell(trunk, global_pool=pool), trunk)
        except UnsupportedModelError as error:
            reason = str(error)
    return None if reason is None else reason.partition(": ")[2]


def _shell(architecture: str) -> nn.Module:
    """An image tower of open_clip's own without weights and with one block only: enough to tell whether it can be
    explained."""
    import open_clip
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    config = open_clip.get_model_config(architecture)
    layers = config["vision_cfg"].get("layers")
    vision = {**config["vision_cfg"], "layers": 1 if isinstance(layers, int) else layers}
    with torch.device("meta"):
        visual: nn.Module = _build_vision_tower(
            config["embed_dim"], CLIPVisionCfg(**vision), config.get("quick_gelu", False)
        )
    return visual.eval()


def refused() -> list[tuple[str, str]]:
    """The architectures of open_clip that cannot be explained, each with the reason."""
    import open_clip

    reasons = [(architecture, refusal(architecture)) for architecture in open_clip.list_models()]
    return [(f"open_clip:{architecture}", reason) for architecture, reason in reasons if reason is not None]


def needs_transformers(architecture: str) -> bool:
    """Whether a model's tokenizer or text tower needs the transformers package, which avgrad does not install."""
    import open_clip

    text = open_clip.get_model_config(architecture)["text_cfg"]
    return bool(text.get("hf_tokenizer_name") or text.get("hf_model_name"))


def _is_cached(config: dict[str, Any]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    owner, _, rest = str(config.get("hf_hub") or "").partition("/")
    repository, _, file = rest.partition("/")
    if repository:
        files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        if any(isinstance(try_to_load_from_cache(f"{owner}/{repository}", name), str) for name in files):
            return True
    url = str(config.get("url") or "")
    return bool(url) and (Path.home() / ".cache" / "clip" / Path(url).name).is_file()


@family("open_clip:ARCHITECTURE/WEIGHTS")
class OpenClipFamily(Family):
    """open_clip's models."""

    def load(
        self, name: str, *, checkpoint: Source | None, device: torch.device, dtype: torch.dtype, towers: Sequence[str]
    ) -> OpenClip:
        architecture, _, weights = name.partition("/")
        return OpenClip.from_pretrained(
            architecture, os.fspath(checkpoint) if checkpoint else weights, device=device, dtype=dtype
        )

    def names(self) -> list[str]:
        return [f"open_clip:{architecture}/{tag}" for architecture, tags in pretrained().items() for tag in tags]

    def entries(self) -> list[Entry]:
        lines = []
        for architecture, tags in pretrained().items():
            needs = "needs `pip install transformers`; " if needs_transformers(architecture) else ""
            lines.append(Entry(f"open_clip:{architecture}/...", ("text",), needs + describe_weights(tags)))
        return lines

    def refused(self) -> list[tuple[str, str]]:
        return refused()
