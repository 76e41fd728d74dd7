"""CLIP, SigLIP and CoCa models of the open_clip library: an adapter that reads their weights and patches nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.encoders.image import CLIP_MEAN, CLIP_STD, Preprocess
from avgrad.engine.attention import Attention
from avgrad.engine.blocks import PreNorm
from avgrad.engine.heads import AttentionPooler, Head
from avgrad.engine.mlp import Activation, Mlp
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear, Weight, accept_types
from avgrad.engine.view import ViTView, interpolate_positions
from avgrad.errors import UnsupportedModelError
from avgrad.models import timm
from avgrad.models.checkpoints import not_loaded
from avgrad.models.registry import Entry, Family, Source, describe_weights, family
from avgrad.models.timm_view import Refuse, trunk_view

if TYPE_CHECKING:
    from PIL import Image


# Names nothing: what a model that pools by attention sees for it, it sees for every prompt (LeGrad paper, B.5).
EMPTY_PROMPT = "a photo of a"


class OpenClip:
    """A CLIP, SigLIP or CoCa model of open_clip with its tokenizer.

    Args:
        model: what `open_clip.create_model` gives; its image tower must be open_clip's `VisionTransformer` or a plain
            one of timm.
        tokenizer: turns a list of texts into token ids, as `open_clip.get_tokenizer` gives; None for CLIP's.
        name: what `avgrad.load` calls the model.

    Raises:
        UnsupportedModelError: the image tower is of a kind that the view cannot express.
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
        self.vision = vision_view(model.get_submodule("visual"), name)
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
                f"{name} has a tokenizer that needs the transformers package: `pip install transformers`"
            )
        try:
            # refused before anything is fetched: the shape of the model needs no weights
            with torch.device("meta"):
                shell = open_clip.create_model(architecture, load_weights=False, pretrained_text=False, device="meta")
            vision_view(shell.get_submodule("visual"), name)
            model = open_clip.create_model(
                architecture,
                pretrained=weights,
                device=device,
                force_quick_gelu=bool(config and config.get("quick_gelu")),
            )
            tokenizer = open_clip.get_tokenizer(architecture)
        except UnsupportedModelError:
            raise
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


def vision_view(visual: nn.Module, name: str) -> ViTView:
    """The view of an open_clip image tower.

    Args:
        visual: `model.visual`.
        name: of the model, for errors.

    Raises:
        UnsupportedModelError: naming the part that the view cannot express.
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer

    def refuse(part: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{name} cannot be explained: {part}")

    if type(visual) is TimmModel:
        view = trunk_view(visual.get_submodule("trunk"), name)
        projection = _projection(visual, refuse)
        if projection is None:
            return view
        return replace(view, head=Head(view.head.norm, Linear(projection)))
    if not isinstance(visual, OpenClipVisionTransformer):
        raise refuse(f"its image tower is a {type(visual).__name__}, and open_clip's VisionTransformer is expected")
    pooler = None if visual.attn_pool is None else _pooler(visual, refuse)
    if visual.pool_type not in ("tok", "avg"):
        raise refuse(f"its image tower's pooling is {visual.pool_type!r}, and 'tok' or 'avg' is expected")
    patch = visual.patch_size
    if isinstance(patch, tuple) and patch[0] != patch[1]:
        raise refuse("its patches are not square")
    blocks = [_block(block, refuse) for block in visual.transformer.resblocks]

    accept_types(type(visual))  # whose `proj` is a matrix of its own
    return ViTView(
        embed=Embedding(visual),
        blocks=blocks,
        head=Head(
            _norm(visual.ln_post, refuse),
            None if visual.proj is None else Linear(visual, "proj", None, transposed=True),
        ),
        patch_size=patch if isinstance(patch, int) else patch[0],
        pool="cls" if visual.pool_type == "tok" else "mean",
        norm_before_pool=pooler is None and not visual.final_ln_after_pool,
        pooler=pooler,
        layer_cosine=pooler is None,  # the LeGrad paper's released code scores CoCa's layers without a norm
    )


@dataclass(frozen=True, eq=False)
class Embedding:
    """What comes before the first block of an image tower of open_clip."""

    visual: Any

    def __call__(self, pixels: Tensor) -> Tensor:
        """Tokens `[B, n, d]` of pixels `[B, 3, h, w]`."""
        visual = self.visual
        patches: Tensor = visual.conv1(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        prefix = visual.class_embedding.expand(len(pixels), 1, -1)
        tokens = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
        positions = interpolate_positions(visual.positional_embedding[None], grid, 1, antialias=True)
        embedded: Tensor = visual.ln_pre(tokens + positions)
        return embedded


def _projection(visual: Any, refuse: Refuse) -> nn.Linear | None:
    """What stands between the features that a trunk of timm pools and the embedding; None for nothing."""
    layers = [layer for layer in (visual.trunk.head, *visual.head) if type(layer) not in (nn.Identity, nn.Dropout)]
    if len(layers) > 1 or any(type(layer) is not nn.Linear for layer in layers):
        names = ", ".join(type(layer).__name__ for layer in layers)
        raise refuse(f"its image tower ends in {names}, and one Linear at most is expected")
    return layers[0] if layers else None


def _pooler(visual: Any, refuse: Refuse) -> AttentionPooler:
    """The first query of CoCa's pooler. It looks at the class token too, and ln_post comes behind it."""
    from open_clip.transformer import AttentionalPooler

    pooler = visual.attn_pool
    if type(pooler) is not AttentionalPooler:
        raise refuse(f"its pooler is a {type(pooler).__name__}, and an AttentionalPooler is expected")
    if visual.attn_pool_contrastive is not None or visual.pool_type != "tok":
        raise refuse("its image tower pools by more than the first query of one attentional pooler")
    attention = _plain_attention(pooler.attn, refuse)
    width = attention.embed_dim
    parts = [(start, start + width) for start in (0, width, 2 * width)]
    if attention.in_proj_weight is None:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        query, key, value = (
            Linear(attention, name, "in_proj_bias", bias_rows=rows) for name, rows in zip(names, parts, strict=True)
        )
    else:
        query, key, value = (Linear(attention, "in_proj_weight", "in_proj_bias", rows=rows) for rows in parts)
    return AttentionPooler(
        query=Weight(pooler, "query"),
        key=key,
        value=value,
        out=Linear(attention.out_proj),
        num_heads=attention.num_heads,
        query_norm=_norm(pooler.ln_q, refuse),
        query_proj=query,
        token_norm=_norm(pooler.ln_k, refuse),
    )


def _plain_attention(attention: nn.Module, refuse: Refuse) -> nn.MultiheadAttention:
    if type(attention) is not nn.MultiheadAttention:
        raise refuse(f"its attention is a {type(attention).__name__}, and torch's MultiheadAttention is expected")
    if attention.bias_k is not None or attention.add_zero_attn:
        raise refuse("its attention has additional keys")
    return attention


def _norm(norm: nn.Module, refuse: Refuse) -> Norm:
    from open_clip.transformer import LayerNorm as OpenClipLayerNorm
    from open_clip.transformer import LayerNormFp32

    if not isinstance(norm, nn.LayerNorm):
        raise refuse(f"it has a {type(norm).__name__} where a LayerNorm is expected")
    accept_types(OpenClipLayerNorm, LayerNormFp32)
    return Norm(norm)


def _block(block: Any, refuse: Refuse) -> PreNorm:
    from open_clip.transformer import LayerScale, QuickGELU, ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock:
        raise refuse(f"its blocks are {type(block).__name__}, and the plain ResidualAttentionBlock is expected")
    attention, mlp = _plain_attention(block.attn, refuse), block.mlp
    if attention.in_proj_weight is None:
        raise refuse("its attention has separate projections")
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
        scales.append(Weight(scale, "gamma") if isinstance(scale, LayerScale) else None)
    return PreNorm(
        norm1=_norm(block.ln_1, refuse),
        attn=Attention(
            Linear(attention, "in_proj_weight", "in_proj_bias"), Linear(attention.out_proj), attention.num_heads
        ),
        norm2=_norm(block.ln_2, refuse),
        mlp=Mlp(Linear(mlp.c_fc), activation, Linear(mlp.c_proj)),
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
    # text towers of Hugging Face need the transformers library, which avgrad does not install
    if config.get("text_cfg", {}).get("hf_model_name"):
        return False
    if vision.get("timm_model_name"):
        return _is_timm_expressible(vision)
    special = ["block_type", "qk_norm", "scaled_cosine_attn", "scale_heads"]
    special += ["scale_attn_inner", "scale_attn", "scale_fc", "norm_kwargs", "act_kwargs"]
    if vision.get("attentional_pool", False) not in (False, True) or any(vision.get(name) for name in special):
        return False
    return isinstance(vision.get("layers"), int)


def _is_timm_expressible(vision: dict[str, Any]) -> bool:
    """The same of an image tower of timm, from one block of it."""
    architecture = vision["timm_model_name"]
    if not timm.is_plain(architecture) or vision.get("timm_proj") == "mlp":
        return False
    try:
        trunk_view(timm.shell(architecture, global_pool=vision.get("timm_pool") or None), architecture)
    except UnsupportedModelError:
        return False
    return True


def needs_transformers(architecture: str) -> bool:
    """Whether a model's tokenizer needs the transformers package, which avgrad does not install."""
    import open_clip

    return bool(open_clip.get_model_config(architecture)["text_cfg"].get("hf_tokenizer_name"))


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
