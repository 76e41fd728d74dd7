"""Models with random weights: speed does not depend on the weights' values, so nothing is downloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avgrad.engine.view import ViTView, interpolate_positions
from avgrad.errors import UnsupportedModelError
from avgrad.models.imagebind import ImageBind
from avgrad.models.open_clip import OpenClip
from avgrad.models.pe_av import PeAv
from avgrad.models.pe_av_files import check_library
from avgrad.models.pe_av_view import video_embedding
from avgrad.models.registry import load
from avgrad.models.timm import TimmModel
from avgrad.models.timm_names import refusal
from benchmarks import pe_av

NAMES = "mini, imagebind_huge, pe-av-small, -base, -large, open_clip:ARCHITECTURE (such as ViT-B-16) and timm:NAME"

# open_clip builds no model without a text tower; this one takes negligible time and memory
_NO_TEXT = {"context_length": 4, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class Subject:
    """A model to be timed.

    Attributes:
        name: as on the command line.
        library: whose code runs the plain forward pass.
        model: as `avgrad.load` gives it.
        make: builds the library's own model for images of so many pixels a side (None: the model's own size).
            None where the library's model takes images of any size as it is.
    """

    name: str
    library: str
    model: OpenClip | TimmModel | ImageBind | PeAv
    make: Callable[[int | None], nn.Module] | None = None

    @property
    def view(self) -> ViTView:
        return self.model.vision

    @property
    def size(self) -> int:
        """Image size in pixels that the model was built for."""
        return self.model.preprocess.size

    def twin(self, size: int | None = None) -> nn.Module:
        """The library's own model on the same weights, for images of another size.

        Args:
            size: side of the images in pixels; position embeddings are interpolated to them once, here. None: the
                model's own.
        """
        assert self.make is not None and isinstance(self.model, OpenClip | TimmModel)
        with torch.device("meta"):
            twin = self.make(size)
        wanted, state = twin.state_dict(), self.model.model.state_dict()
        for key, tensor in state.items():
            if tensor.shape != wanted[key].shape:
                side = round((wanted[key].numel() // tensor.shape[-1] - self.view.num_prefix_tokens) ** 0.5)
                positions = tensor.view(1, -1, tensor.shape[-1])
                resized = interpolate_positions(positions, (side, side), self.view.num_prefix_tokens, antialias=True)
                state[key] = resized.view(wanted[key].shape)
        twin.load_state_dict(state, assign=True)
        return twin.eval()

    def plain(self, size: int) -> Callable[[Tensor], Tensor]:
        """The library's own forward pass for pixels `[B, 3, size, size]`."""
        if isinstance(self.model, PeAv):
            video = self.model.model.video_model
            if size != self.size:  # the library's frame tower takes one size
                video = copy.deepcopy(video)
                video.video_encoder.embedder.vision_model.timm_model.set_input_size(img_size=size)
            return lambda pixels: video_embedding(video, pixels[:, None])
        if self.make is None:
            assert isinstance(self.model, ImageBind)
            tower = self.model.tower
            return lambda pixels: tower("vision", pixels)
        twin = self.twin(size).requires_grad_(False)
        forward: Callable[[Tensor], Tensor] = twin.encode_image if isinstance(self.model, OpenClip) else twin  # type: ignore[assignment]
        return forward


def _clip_maker(architecture: str) -> Callable[[int | None], nn.Module]:
    import open_clip

    config: dict[str, Any] = open_clip.get_model_config(architecture)

    def make(size: int | None) -> nn.Module:
        vision = config["vision_cfg"] if size is None else {**config["vision_cfg"], "image_size": size}
        model: nn.Module = open_clip.CLIP(
            config["embed_dim"],
            vision,
            _NO_TEXT,
            quick_gelu=config.get("quick_gelu", False),
        )
        trunk = getattr(model.visual, "trunk", None)
        if size is not None and trunk is not None:  # of timm, which ignores the configuration's size
            trunk.set_input_size(img_size=size)
        return model

    return make


def _timm_maker(architecture: str) -> Callable[[int | None], nn.Module]:
    import timm

    def make(size: int | None) -> nn.Module:
        resized: dict[str, Any] = {} if size is None else {"img_size": size}
        model: nn.Module = timm.create_model(architecture, **resized)
        return model

    return make


def check(name: str) -> None:
    """Refuses an unknown model name before any model is built.

    Raises:
        UnsupportedModelError: there is no such model.
    """
    library, _, architecture = name.partition(":")
    if library == "open_clip" and architecture:
        import open_clip

        if architecture not in open_clip.list_models():
            raise UnsupportedModelError(f"open_clip has no model {architecture!r}; one such as ViT-B-16 is expected")
    elif library == "timm" and architecture:
        reason = refusal(architecture)
        if reason is not None:
            raise UnsupportedModelError(reason)
    elif name in pe_av.NAMES:
        check_library(name)
    elif name not in ("mini", "imagebind_huge"):
        raise UnsupportedModelError(f"there is no model {name!r}; there are {NAMES}")


def build(name: str, device: torch.device, dtype: torch.dtype) -> Subject:
    """A model with random weights (the same each time), or the bundled one.

    Args:
        name: one of `NAMES`.
        device: where to put it.
        dtype: of its weights.

    Raises:
        UnsupportedModelError: there is no such model, or the view cannot express it.
    """
    check(name)
    if name == "mini":
        model = load(name, device=device, dtype=dtype, towers=("vision",))
        assert isinstance(model, ImageBind)
        return Subject(name, "avgrad's towers", model)
    if name == "imagebind_huge":
        huge = ImageBind(towers=("vision",), name=name).initialize(torch.Generator().manual_seed(0))
        return Subject(name, "avgrad's towers", huge.to(device, dtype).eval().requires_grad_(False))
    if name in pe_av.NAMES:
        peav = pe_av.random_model(name)
        peav.model.to(device, dtype)
        return Subject(name, "transformers", peav)
    library, _, architecture = name.partition(":")
    torch.manual_seed(0)
    if library == "open_clip":
        make = _clip_maker(architecture)
        clip = make(None).to(device, dtype)
        return Subject(name, library, OpenClip(clip, lambda texts: torch.zeros(len(texts), 4).long(), name), make)
    make = _timm_maker(architecture)
    return Subject(name, library, TimmModel(make(None).to(device, dtype), name), make)
