"""The view of timm's vision transformers.

It takes what it knows by exact type. Everything else that timm's `VisionTransformer` can be built of (qk-norm, gated
MLPs, parallel blocks, ...) is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avgrad.engine.attention import Attention
from avgrad.engine.blocks import PreNorm
from avgrad.engine.heads import AttentionPooler, Head
from avgrad.engine.mlp import Activation, Mlp
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear, Weight, accept_types
from avgrad.engine.view import ViTView, interpolate_positions
from avgrad.errors import UnsupportedModelError

Refuse = Callable[[str], UnsupportedModelError]


def trunk_view(model: nn.Module, name: str) -> ViTView:
    """The view of a vision transformer of timm, whose embedding is what it pools: its own `head` is left out.

    Args:
        model: an object of timm's `VisionTransformer` itself.
        name: of the model, for errors.

    Raises:
        UnsupportedModelError: naming the part that the view cannot express.
    """
    from timm.layers import PatchEmbed  # type: ignore[attr-defined]
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    def refuse(part: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{name} cannot be explained: {part}")

    if type(model) is not TimmVisionTransformer:
        raise refuse(f"it is a {type(model).__name__}, and timm's VisionTransformer is expected")
    trunk: Any = model
    known = "cls_token reg_token pos_embed patch_embed patch_drop norm_pre blocks norm attn_pool fc_norm head"
    _check_parts(trunk, known, refuse)
    if type(trunk.patch_embed) is not PatchEmbed:
        raise refuse(f"its patches are made by {type(trunk.patch_embed).__name__}, and PatchEmbed is expected")
    _check_parts(trunk.patch_embed, "proj norm", refuse)
    patch, grid = trunk.patch_embed.patch_size, trunk.patch_embed.grid_size
    if patch[0] != patch[1]:
        raise refuse("its patches are not square")
    if grid is None or (grid[0] != grid[1] and trunk.pos_embed is not None):
        raise refuse("its position embeddings are not of a square grid")
    prefix: int = trunk.num_prefix_tokens
    if trunk.global_pool not in ("token", "avg", "map"):
        raise refuse(f"its pooling is {trunk.global_pool!r}, and 'token', 'avg' or 'map' is expected")
    if trunk.global_pool == "avg" and trunk.pool_include_prefix and prefix:
        raise refuse("its pooling takes the mean of the patches and the tokens in front of them")
    if (trunk.global_pool == "map") != (trunk.attn_pool is not None):
        raise refuse("its pooling is said to be one thing and built as another")
    embed_norm, norm_pre = _norm(trunk.patch_embed.norm, refuse), _norm(trunk.norm_pre, refuse)
    norm, pooled_norm = _norm(trunk.norm, refuse), _norm(trunk.fc_norm, refuse)
    if norm is not None and pooled_norm is not None:
        raise refuse("it has a final LayerNorm both before and after its pooling")

    return ViTView(
        embed=Embedding(trunk, embed_norm, norm_pre),
        blocks=[_block(block, refuse) for block in trunk.blocks],
        head=Head(norm if pooled_norm is None else pooled_norm, None),
        patch_size=patch[0],
        num_prefix_tokens=prefix,
        pool="cls" if trunk.global_pool == "token" else "mean",
        norm_before_pool=pooled_norm is None,
        pooler=None
        if trunk.attn_pool is None
        else _pooler(trunk.attn_pool, 0 if trunk.pool_include_prefix else prefix, refuse),
    )


@dataclass(frozen=True, eq=False)
class Embedding:
    """What comes before the first block of a vision transformer of timm."""

    trunk: Any
    norm: Norm | None
    norm_pre: Norm | None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Tokens `[B, n, d]` of pixels `[B, 3, h, w]`."""
        trunk = self.trunk
        patches: Tensor = trunk.patch_embed.proj(pixels)
        size = (patches.shape[-2], patches.shape[-1])
        tokens = patches.flatten(2).transpose(1, 2)
        if self.norm is not None:
            tokens = self.norm(tokens)
        front = [t.expand(len(pixels), -1, -1) for t in (trunk.cls_token, trunk.reg_token) if t is not None]
        if trunk.pos_embed is not None and trunk.no_embed_class:
            tokens = tokens + interpolate_positions(trunk.pos_embed, size, 0, antialias=True)
        tokens = torch.cat([*front, tokens], dim=1)
        if trunk.pos_embed is not None and not trunk.no_embed_class:
            tokens = tokens + interpolate_positions(trunk.pos_embed, size, trunk.num_prefix_tokens, antialias=True)
        return tokens if self.norm_pre is None else self.norm_pre(tokens)


def _check_parts(module: nn.Module, known: str, refuse: Refuse) -> None:
    """Refuses a module with layers or weights of its own that other releases of timm may add."""
    parts = [*module.named_parameters(recurse=False), *module.named_children()]
    for name, part in parts:
        if name not in known.split() and type(part) not in (nn.Identity, nn.Dropout):
            raise refuse(f"its {type(module).__name__} has a part {name!r}, which is not known here")


def _norm(norm: nn.Module, refuse: Refuse) -> Norm | None:
    from timm.layers import LayerNorm, LayerNormFp32  # type: ignore[attr-defined]

    if type(norm) is nn.Identity:
        return None
    if type(norm) not in (nn.LayerNorm, LayerNorm, LayerNormFp32):
        raise refuse(f"it has a {type(norm).__name__} where a LayerNorm is expected")
    accept_types(LayerNorm, LayerNormFp32)
    return Norm(norm)


def _activation(module: nn.Module, refuse: Refuse) -> Activation:
    from timm.layers.activations import GELU, GELUTanh, QuickGELU

    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    known: dict[type, Activation] = {GELU: "gelu", GELUTanh: "gelu_tanh", QuickGELU: "quick_gelu", nn.ReLU: "relu"}
    if type(module) not in known:
        raise refuse(f"its activation is {type(module).__name__}, and GELU, QuickGELU or ReLU is expected")
    return known[type(module)]


def _mlp(mlp: Any, refuse: Refuse) -> Mlp:
    from timm.layers import Mlp as TimmMlp  # type: ignore[attr-defined]

    if type(mlp) is not TimmMlp:
        raise refuse(f"its MLP is a {type(mlp).__name__}, and timm's plain Mlp is expected")
    _check_parts(mlp, "fc1 act norm fc2", refuse)
    if type(mlp.norm) is not nn.Identity:
        raise refuse("its MLP has a norm inside")
    return Mlp(Linear(mlp.fc1), _activation(mlp.act, refuse), Linear(mlp.fc2))


def _block(block: Any, refuse: Refuse) -> PreNorm:
    from timm.layers import Attention as TimmAttention  # type: ignore[attr-defined]
    from timm.layers import LayerScale  # type: ignore[attr-defined]
    from timm.models.vision_transformer import Block as TimmBlock

    if type(block) is not TimmBlock:
        raise refuse(f"its blocks are {type(block).__name__}, and timm's plain Block is expected")
    _check_parts(block, "norm1 attn ls1 drop_path1 norm2 mlp ls2 drop_path2", refuse)
    attention = block.attn
    if type(attention) is not TimmAttention:
        raise refuse(f"its attention is a {type(attention).__name__}, and timm's plain Attention is expected")
    if type(attention.q_norm) is not nn.Identity or type(attention.k_norm) is not nn.Identity:
        raise refuse("its attention normalizes queries and keys (qk-norm)")
    _check_parts(attention, "qkv q_norm k_norm proj", refuse)
    width = attention.qkv.in_features
    if attention.qkv.out_features != 3 * width or attention.proj.out_features != width:
        raise refuse("its attention is not as wide as its tokens")
    norm1, norm2 = _norm(block.norm1, refuse), _norm(block.norm2, refuse)
    if norm1 is None or norm2 is None:
        raise refuse("its blocks have no LayerNorm in front")
    scales = []
    for scale in (block.ls1, block.ls2):
        if type(scale) not in (LayerScale, nn.Identity):
            raise refuse(f"it has a {type(scale).__name__} where a LayerScale is expected")
        scales.append(Weight(scale, "gamma") if isinstance(scale, LayerScale) else None)
    return PreNorm(
        norm1=norm1,
        attn=Attention(Linear(attention.qkv), Linear(attention.proj), attention.num_heads),
        norm2=norm2,
        mlp=_mlp(block.mlp, refuse),
        scale1=scales[0],
        scale2=scales[1],
    )


def _pooler(pooler: Any, num_skipped: int, refuse: Refuse) -> AttentionPooler:
    from timm.layers import AttentionPoolLatent  # type: ignore[attr-defined]

    if type(pooler) is not AttentionPoolLatent:
        raise refuse(f"its pooler is a {type(pooler).__name__}, and AttentionPoolLatent is expected")
    if type(pooler.q_norm) is not nn.Identity or type(pooler.k_norm) is not nn.Identity:
        raise refuse("its pooler normalizes queries and keys (qk-norm)")
    _check_parts(pooler, "latent q kv q_norm k_norm pos_embed proj norm mlp", refuse)
    if pooler.pos_embed is not None:
        raise refuse("its pooler has position embeddings of its own")
    if pooler.pool != "token" and pooler.latent_len > 1:
        raise refuse("its pooler takes the mean of several queries")
    if type(pooler.proj) is not nn.Linear:
        raise refuse("its pooler has no projection")
    width = pooler.kv.out_features // 2
    return AttentionPooler(
        query=Weight(pooler, "latent"),
        key=Linear(pooler.kv, rows=(0, width)),
        value=Linear(pooler.kv, rows=(width, 2 * width)),
        out=Linear(pooler.proj),
        num_heads=pooler.num_heads,
        query_proj=Linear(pooler.q) if type(pooler.q) is nn.Linear else None,
        mlp=None if pooler.mlp is None else _mlp(pooler.mlp, refuse),
        mlp_norm=None if pooler.mlp is None else _norm(pooler.norm, refuse),
        num_skipped=num_skipped,
    )
