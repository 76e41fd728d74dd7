"""The views of open_clip's image towers: its own VisionTransformer, plain and custom, and trunks of timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from avgrad.engine.attention import Attention
from avgrad.engine.blocks import PreNorm, Sandwich, Serial
from avgrad.engine.heads import AttentionPooler, Head, Tail
from avgrad.engine.mlp import Activation, Mlp
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear, Weight, accept_types
from avgrad.engine.view import ViTView, check_view, interpolate_positions
from avgrad.errors import UnsupportedModelError
from avgrad.models.view import build_view, check_unwrapped, views

PROVED = 8  # tokens that the proof of a view takes


@views("open_clip.model.CLIP", "open_clip.model.CustomTextCLIP", "open_clip.coca_model.CoCa")
def clip_view(model: Any, name: str) -> ViTView:
    """The view of a model's image tower; its text tower may be anything."""
    return build_view(model.visual, name)


@views("open_clip.transformer.VisionTransformer")
def vision_view(visual: Any, name: str) -> ViTView:
    """The view of open_clip's own image tower. CoCa's has an attention pooler, with the final norm behind it."""
    from open_clip.transformer import VisionTransformer

    check_unwrapped(visual)
    accept_types(VisionTransformer)  # whose projection is a matrix of its own
    pooler = None if visual.attn_pool is None else _pooler(visual)
    if visual.pool_type not in ("tok", "avg"):
        raise UnsupportedModelError(f"its pooling is {visual.pool_type!r}, and 'tok' or 'avg' is expected")
    height, width = visual.conv1.stride
    view = ViTView(
        embed=Embed(visual),
        blocks=[_block(block) for block in visual.transformer.resblocks],
        head=Head(
            _norm(visual.ln_post), None if visual.proj is None else Linear(visual, "proj", None, transposed=True)
        ),
        patch_size=height if height == width else (height, width),
        pool="cls" if visual.pool_type == "tok" else "mean",
        norm_before_pool=pooler is None and not visual.final_ln_after_pool,
        pooler=pooler,
        layer_cosine=pooler is None,  # the LeGrad paper's released code scores CoCa's layers without an L2 norm
    )
    return _prove(view, visual, name)


def _prove(view: ViTView, visual: Any, name: str) -> ViTView:
    """`check_view` with the first tokens of an image alone: open_clip's own towers take images of one size, and a whole
    one would take seconds."""

    def embedding(pixels: Tensor) -> Tensor:
        pooled: Tensor = visual._pool(visual.transformer(visual._embeds(pixels)[:, :PROVED]))[0]
        return pooled if visual.proj is None else pooled @ visual.proj

    check_view(replace(view, embed=_First(view.embed)), embedding, name, [visual.image_size])
    return view


class _First:
    """The first tokens that an embedding gives."""

    def __init__(self, embed: Callable[[Tensor], Tensor]) -> None:
        self.embed = embed

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.embed(pixels)[:, :PROVED]


@views("open_clip.timm_model.TimmModel")
def timm_tower_view(visual: Any, name: str) -> ViTView:
    """The view of a trunk of timm with open_clip's projection, which may be timm's own classifier."""
    from avgrad.models.timm_view import trunk_view

    check_unwrapped(visual)
    view = trunk_view(visual.trunk, name)
    layers = [layer for layer in (visual.trunk.head, *visual.head) if type(layer) not in (nn.Identity, nn.Dropout)]
    if layers:
        view = replace(view, head=Head(view.head.norm, _projection(layers), num_pooled=view.head.num_pooled))
    return check_view(view, visual, name, [visual.image_size])


def _projection(layers: list[nn.Module]) -> Linear | Tail:
    from timm.layers import Mlp as TimmMlp  # type: ignore[attr-defined]

    if len(layers) == 1 and isinstance(layers[0], nn.Linear):
        return Linear(layers[0])
    last: Any = layers[-1]
    if any(type(layer) not in (nn.Linear, TimmMlp) for layer in layers):
        names = ", ".join(type(layer).__name__ for layer in layers)
        raise UnsupportedModelError(f"its image tower ends in {names}, and Linear or Mlp is expected")
    return Tail(nn.Sequential(*layers), (last if isinstance(last, nn.Linear) else last.fc2).out_features)


class Embed:
    """What stands in front of the first block. Positions are resampled as open_clip does when it loads a model for
    another image size."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    def __call__(self, pixels: Tensor) -> Tensor:
        """Tokens `[B, n, d]` of pixels `[B, 3, h, w]`."""
        visual = self.visual
        patches: Tensor = visual.conv1(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        front = visual.class_embedding.expand(len(pixels), 1, -1)
        tokens = torch.cat([front, patches.flatten(2).transpose(1, 2)], dim=1)
        positions = interpolate_positions(
            visual.positional_embedding[None], grid, 1, antialias=True, native=visual.grid_size
        )
        embedded: Tensor = visual.ln_pre(tokens + positions)
        return embedded


def _pooler(visual: Any) -> AttentionPooler:
    """The first query of CoCa's pooler. It looks at the class token too."""
    from open_clip.transformer import AttentionalPooler

    pooler = visual.attn_pool
    if type(pooler) is not AttentionalPooler:
        raise UnsupportedModelError(f"its pooler is a {type(pooler).__name__}, and an AttentionalPooler is expected")
    if visual.attn_pool_contrastive is not None or visual.pool_type != "tok":
        raise UnsupportedModelError("its image tower pools by more than the first query of one attentional pooler")
    attention = _plain_attention(pooler.attn)
    width = attention.embed_dim
    parts = [(start, start + width) for start in (0, width, 2 * width)]
    maps: list[Linear]
    if attention.in_proj_weight is None:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        maps = [Linear(attention, key, "in_proj_bias", bias_rows=part) for key, part in zip(names, parts, strict=True)]
    else:
        maps = [Linear(attention, "in_proj_weight", "in_proj_bias", rows=part) for part in parts]
    query, key, value = maps
    return AttentionPooler(
        query=Weight(pooler, "query"),
        query_norm=_norm(pooler.ln_q),
        query_proj=query,
        token_norm=_norm(pooler.ln_k),
        key=key,
        value=value,
        out=Linear(attention.out_proj),
        num_heads=attention.num_heads,
    )


def _plain_attention(attention: nn.Module) -> nn.MultiheadAttention:
    if type(attention) is not nn.MultiheadAttention:
        what = type(attention).__name__
        raise UnsupportedModelError(f"its attention is a {what}, and torch's MultiheadAttention is expected")
    if attention.bias_k is not None or attention.add_zero_attn:
        raise UnsupportedModelError("its attention has additional keys")
    return attention


def _norm(module: nn.Module) -> Norm | None:
    """A norm; None for nothing."""
    from open_clip.transformer import LayerNorm, LayerNormFp32

    accept_types(LayerNorm, LayerNormFp32)
    return None if type(module) is nn.Identity else Norm(module)


def _needed(module: nn.Module) -> Norm:
    found = _norm(module)
    if found is None:
        raise UnsupportedModelError("its blocks have no norm in front")
    return found


def _activation(module: nn.Module) -> Activation:
    from open_clip.transformer import QuickGELU

    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    known: dict[type, Activation] = {QuickGELU: "quick_gelu", nn.ReLU: "relu", nn.SiLU: "silu"}
    if type(module) not in known:
        raise UnsupportedModelError(
            f"its activation is {type(module).__name__}, and GELU, QuickGELU, ReLU or SiLU is expected"
        )
    return known[type(module)]


def _attention(attention: Any) -> Attention:
    """torch's attention, or open_clip's own with qk-norm, a factor per head or a norm in front of the projection."""
    from open_clip.transformer import Attention as OpenClipAttention

    if type(attention) is not OpenClipAttention:
        plain = _plain_attention(attention)
        if plain.in_proj_weight is None:
            raise UnsupportedModelError("its attention has separate projections")
        return Attention(Linear(plain, "in_proj_weight", "in_proj_bias"), Linear(plain.out_proj), plain.num_heads)
    if attention.logit_scale is not None:
        raise UnsupportedModelError("its attention is scaled cosine attention, which open_clip itself cannot compute")
    accept_types(OpenClipAttention)
    return Attention(
        Linear(attention, "in_proj_weight", "in_proj_bias"),
        Linear(attention.out_proj),
        attention.num_heads,
        q_norm=_norm(attention.ln_q),
        k_norm=_norm(attention.ln_k),
        inner_norm=_norm(attention.ln_inner),
        head_scale=None if attention.head_scale is None else Weight(attention, "head_scale"),
    )


def _block(block: Any) -> Serial:
    from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock

    if type(block) not in (ResidualAttentionBlock, CustomResidualAttentionBlock):
        raise UnsupportedModelError(
            f"its blocks are {type(block).__name__}, and ResidualAttentionBlock or CustomResidualAttentionBlock is "
            "expected"
        )
    layers = dict(block.mlp.named_children())
    if list(layers) not in (["c_fc", "gelu", "c_proj"], ["c_fc", "gelu", "ln", "c_proj"]):
        raise UnsupportedModelError(f"its MLP consists of {', '.join(layers)}, and c_fc, gelu, c_proj are expected")
    hidden_norm = _norm(layers["ln"]) if "ln" in layers else None
    norm1, norm2, attn = _needed(block.ln_1), _needed(block.ln_2), _attention(block.attn)
    mlp = Mlp(Linear(layers["c_fc"]), _activation(layers["gelu"]), Linear(layers["c_proj"]), hidden_norm)
    post, scales = _norm(getattr(block, "ln_attn", nn.Identity())), (_scale(block.ls_1), _scale(block.ls_2))
    if post is None:
        return PreNorm(norm1, attn, norm2, mlp, *scales)
    return Sandwich(norm1, attn, post, norm2, mlp, None, *scales)


def _scale(scale: nn.Module) -> Weight | None:
    from open_clip.transformer import LayerScale

    if type(scale) not in (LayerScale, nn.Identity):
        raise UnsupportedModelError(f"it has a {type(scale).__name__} where a LayerScale is expected")
    return Weight(scale, "gamma") if isinstance(scale, LayerScale) else None
