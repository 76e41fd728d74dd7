"""CLIP models of the open_clip library: an adapter that reads their weights and patches nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.encoders.image import CLIP_MEAN, CLIP_STD, Preprocess
from avgrad.engine.vit import (
    Activation,
    Block,
    Head,
    Norm,
    UnsupportedModelError,
    VisionTransformer,
    interpolate_positions,
)
from avgrad.models.checkpoints import CheckpointError

if TYPE_CHECKING:
    from PIL import Image


class OpenClip:
    """A CLIP model of open_clip with its tokenizer.

    Args:
        model: what `open_clip.create_model` gives; its image tower must be open_clip's `VisionTransformer`.
        tokenizer: turns a list of texts into token ids, as `open_clip.get_tokenizer` gives; None for CLIP's.
        name: what `avgrad.load` calls the model.

    Raises:
        UnsupportedModelError: the image tower is of a kind that the view cannot express.
    """

    modalities = ("text",)

    def __init__(
        self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor] | None = None, name: str = "open_clip"
    ) -> None:
        if tokenizer is None:
            from open_clip.tokenizer import SimpleTokenizer

            tokenizer = SimpleTokenizer()
        self.name, self.model, self.tokenizer = name, model.eval().requires_grad_(False), tokenizer
        self.vision = vision_view(model.get_submodule("visual"), name)
        self.preprocess = _preprocess(model.visual, self.vision.patch_size)

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
        try:
            # refused before anything is fetched: the shape of the model needs no weights
            with torch.device("meta"):
                shell = open_clip.create_model(architecture, load_weights=False, pretrained_text=False, device="meta")
            vision_view(shell.visual, name)
            model = open_clip.create_model(
                architecture,
                pretrained=weights,
                device=device,
                force_quick_gelu=bool(config and config.get("quick_gelu")),
            )
        except UnsupportedModelError:
            raise
        except Exception as error:  # open_clip, its hub and torch raise many kinds, all for missing weights
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"the weights of {name} could not be loaded: {reason}") from error
        return cls(model.to(dtype), open_clip.get_tokenizer(architecture), name)

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
        """The model's own preprocessing of a picture: `[3, size, size]`."""
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


def vision_view(visual: nn.Module, name: str) -> VisionTransformer:
    """The view of an open_clip image tower.

    Args:
        visual: `model.visual`.
        name: of the model, for errors.

    Raises:
        UnsupportedModelError: naming the part that the view cannot express.
    """
    from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer

    def refuse(part: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{name} cannot be explained: {part}")

    if not isinstance(visual, OpenClipVisionTransformer):
        raise refuse(f"its image tower is a {type(visual).__name__}, and open_clip's VisionTransformer is expected")
    if visual.attn_pool is not None:
        raise refuse("its image tower pools by attention")
    if visual.pool_type not in ("tok", "avg"):
        raise refuse(f"its image tower's pooling is {visual.pool_type!r}, and 'tok' or 'avg' is expected")
    patch = visual.patch_size
    if isinstance(patch, tuple) and patch[0] != patch[1]:
        raise refuse("its patches are not square")
    blocks = [_block(block, refuse) for block in visual.transformer.resblocks]

    def embed(pixels: Tensor) -> Tensor:
        patches: Tensor = visual.conv1(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        prefix = visual.class_embedding.expand(len(pixels), 1, -1)
        tokens = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
        positions = interpolate_positions(visual.positional_embedding[None], grid, 1, antialias=True)
        embedded: Tensor = visual.ln_pre(tokens + positions)
        return embedded

    return VisionTransformer(
        embed=embed,
        blocks=blocks,
        head=Head(_norm(visual.ln_post, refuse), None if visual.proj is None else visual.proj.t()),
        patch_size=patch if isinstance(patch, int) else patch[0],
        pool="cls" if visual.pool_type == "tok" else "mean",
        norm_before_pool=not visual.final_ln_after_pool,
    )


def _norm(norm: nn.Module, refuse: Callable[[str], UnsupportedModelError]) -> Norm:
    if not isinstance(norm, nn.LayerNorm):
        raise refuse(f"it has a {type(norm).__name__} where a LayerNorm is expected")
    return Norm(norm.weight, norm.bias, norm.eps)


def _block(block: Any, refuse: Callable[[str], UnsupportedModelError]) -> Block:
    from open_clip.transformer import LayerScale, QuickGELU, ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock:
        raise refuse(f"its blocks are {type(block).__name__}, and the plain ResidualAttentionBlock is expected")
    attention, mlp = block.attn, block.mlp
    if not isinstance(attention, nn.MultiheadAttention):
        raise refuse(f"its attention is a {type(attention).__name__}, and torch's MultiheadAttention is expected")
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        raise refuse("its attention has separate projections or additional keys")
    if hasattr(block, "ln_1_kv"):
        raise refuse("its blocks attend to something else than their own tokens")
    names = [name for name, _ in mlp.named_children()]
    if names != ["c_fc", "gelu", "c_proj"]:
        raise refuse(f"its MLP consists of {', '.join(names)}, and c_fc, gelu, c_proj are expected")
    activation: Activation
    if isinstance(mlp.gelu, QuickGELU):
        activation = "quick_gelu"
    elif isinstance(mlp.gelu, nn.GELU):
        activation = "gelu_tanh" if mlp.gelu.approximate == "tanh" else "gelu"
    elif isinstance(mlp.gelu, nn.ReLU):
        activation = "relu"
    else:
        raise refuse(f"its activation is {type(mlp.gelu).__name__}, and GELU, QuickGELU or ReLU is expected")
    scales = []
    for scale in (block.ls_1, block.ls_2):
        if not isinstance(scale, LayerScale | nn.Identity):
            raise refuse(f"it has a {type(scale).__name__} where a LayerScale is expected")
        scales.append(scale.gamma if isinstance(scale, LayerScale) else None)
    return Block(
        norm1=_norm(block.ln_1, refuse),
        qkv_weight=attention.in_proj_weight,
        qkv_bias=attention.in_proj_bias,
        out_weight=attention.out_proj.weight,
        out_bias=attention.out_proj.bias,
        num_heads=attention.num_heads,
        norm2=_norm(block.ln_2, refuse),
        fc1_weight=mlp.c_fc.weight,
        fc1_bias=mlp.c_fc.bias,
        fc2_weight=mlp.c_proj.weight,
        fc2_bias=mlp.c_proj.bias,
        activation=activation,
        scale1=scales[0],
        scale2=scales[1],
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
        if _is_expressible(open_clip.get_model_config(architecture))
        and (tags := list_pretrained_tags_by_model(architecture))
    }


def _is_expressible(config: dict[str, Any]) -> bool:
    """Whether `vision_view` would take the model, told from its configuration, without building it."""
    vision = config.get("vision_cfg", {})
    special = ["timm_model_name", "attentional_pool", "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads"]
    special += ["scale_attn_inner", "scale_attn", "scale_fc", "norm_kwargs", "act_kwargs"]
    # text towers of Hugging Face need the transformers library, which avgrad does not install
    foreign = config.get("text_cfg", {}).get("hf_model_name")
    return isinstance(vision.get("layers"), int) and not foreign and not any(vision.get(name) for name in special)


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
