"""The view of timm's vision transformers: VisionTransformer (plain, hybrid, distilled), Eva, Beit, NaFlexVit and
VisionTransformerRelPos.

It takes what it knows by exact type, and everything else is refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models import beit, deit, eva, naflexvit, vision_transformer, vision_transformer_relpos
from torch import Tensor, nn

from avgrad.engine.heads import AttentionPooler, Head
from avgrad.engine.parts import Linear, Weight
from avgrad.engine.view import Pool, ViTView, check_view
from avgrad.errors import UnsupportedModelError
from avgrad.models.timm_blocks import timm_blocks
from avgrad.models.timm_embed import embed_of
from avgrad.models.timm_names import is_projection
from avgrad.models.timm_parts import check_parts, mlp, norm, refuse
from avgrad.models.view import check_unwrapped

_TRUNK = "cls_token pos_embed patch_embed blocks norm fc_norm head"
_VIT = f"{_TRUNK} reg_token patch_drop norm_pre attn_pool"

_HEADS = ("head", "head_dist")

# The models, and which parts of theirs are known.
_PARTS: dict[type, str] = {
    vision_transformer.VisionTransformer: _VIT,
    deit.VisionTransformerDistilled: f"{_VIT} dist_token head_dist",
    eva.Eva: f"{_VIT} rope",
    beit.Beit: f"{_TRUNK} rel_pos_bias",
    vision_transformer_relpos.VisionTransformerRelPos: f"{_TRUNK} shared_rel_pos",
    naflexvit.NaFlexVit: "embeds norm_pre rope patch_drop blocks norm attn_pool fc_norm head",
}


def trunk_view(model: nn.Module, name: str) -> ViTView:
    """The view of a vision transformer of timm, whose embedding is what it pools: its own `head` is left out.

    Args:
        model: an object of one of the classes above itself.
        name: of the model, for errors.

    Raises:
        UnsupportedModelError: naming the part that the view cannot express.
    """
    try:
        return _trunk_view(model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{name} cannot be explained: {error}") from None


def model_view(model: nn.Module, name: str) -> ViTView:
    """The view of a vision transformer of timm with its `head`, proved against the model itself.

    The head of a CLIP-like model is its projection, and embeddings are what it gives. Any other head is a classifier:
    embeddings are what it reads, its rows are the prompts, and scores are logits.

    Args:
        model: as in `trunk_view`, in eval mode.
        name: of the model, for errors.

    Raises:
        UnsupportedModelError: naming the part that the view cannot express; or the model's own embedding is another.
    """
    view = trunk_view(model, name)
    projection = is_projection(getattr(model, "pretrained_cfg", None) or {}, getattr(model, "num_classes", 0))
    heads = [child for child, layer in model.named_children() if child in _HEADS and type(layer) is not nn.Identity]
    if heads:
        try:
            linear, *_ = [Linear(model.get_submodule(head)) for head in heads]
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{name} cannot be explained: {error}") from None
        norm, num_pooled = view.head.norm, view.head.num_pooled
        view = replace(view, head=Head(norm, linear if projection else None, projection, num_pooled))
    return _prove(view, model, name, projection)


def _prove(view: ViTView, model: Any, name: str, projection: bool) -> ViTView:
    """The view, if its embedding is the model's own: at the model's own size, and at another if the model takes one."""
    _, patch, native = embed_of(model)
    sizes = [native]
    dynamic = isinstance(model, naflexvit.NaFlexVit) or getattr(model, "dynamic_img_size", False)
    if dynamic and view.dtype != torch.float64:  # whose positions timm interpolates in float32, and the view does not
        sizes.append((2 * patch[0], 3 * patch[1]))

    def embedding(pixels: Tensor) -> Tensor:
        features = model.forward_features(pixels)
        if isinstance(model, deit.VisionTransformerDistilled):
            return features[:, :2].flatten(1)  # the two heads read one token each
        embedding: Tensor = model.forward_head(features, pre_logits=not projection)
        return embedding

    return check_view(view, embedding, name, sizes)


def _trunk_view(model: nn.Module) -> ViTView:
    if type(model) not in _PARTS:
        known = ", ".join(kind.__name__ for kind in _PARTS)
        raise refuse(f"it is a {type(model).__name__}, and one of {known} is expected")
    check_parts(model, _PARTS[type(model)])
    check_unwrapped(model)
    trunk: Any = model
    embed, patch, _ = embed_of(trunk)
    prefix: int = trunk.num_prefix_tokens
    pool_norm, pooled_norm = norm(trunk.norm), norm(trunk.fc_norm)
    if pool_norm is not None and pooled_norm is not None:
        raise refuse("it has a final norm both before and after its pooling")
    pool, pooler, num_pooled = _pooling(trunk, prefix)
    return ViTView(
        embed=embed,
        blocks=timm_blocks(trunk),
        head=Head(pool_norm if pooled_norm is None else pooled_norm, num_pooled=num_pooled),
        patch_size=patch[0] if patch[0] == patch[1] else patch,
        num_prefix_tokens=prefix,
        pool=pool,
        norm_before_pool=pooled_norm is None,
        pooler=pooler,
    )


def _pooling(trunk: Any, prefix: int) -> tuple[Pool, AttentionPooler | None, int]:
    """How a model pools, its attentional pooler, and how many pooled tokens its head reads."""
    pooler, with_prefix = getattr(trunk, "attn_pool", None), getattr(trunk, "pool_include_prefix", False)
    if trunk.global_pool not in ("token", "avg", "map"):
        raise refuse(f"its pooling is {trunk.global_pool!r}, and 'token', 'avg' or 'map' is expected")
    if (trunk.global_pool == "map") != (pooler is not None):
        raise refuse("its pooling is said to be one thing and built as another")
    if isinstance(trunk, deit.VisionTransformerDistilled):
        return "prefix", None, 2
    if pooler is not None:
        # Eva hands all of its tokens to the pooler
        skipped = 0 if with_prefix or isinstance(trunk, eva.Eva) else prefix
        return "mean", _pooler(pooler, skipped), 1
    if trunk.global_pool == "token":
        return "cls", None, 1
    return ("mean_all" if with_prefix and prefix else "mean"), None, 1


def _pooler(pooler: Any, num_skipped: int) -> AttentionPooler:
    if type(pooler) is not AttentionPoolLatent:
        raise refuse(f"its pooler is a {type(pooler).__name__}, and AttentionPoolLatent is expected")
    check_parts(pooler, "latent q kv q_norm k_norm pos_embed proj norm mlp")
    if pooler.pool not in ("token", "avg"):
        raise refuse(f"its pooler's queries are pooled by {pooler.pool!r}, and 'token' or 'avg' is expected")
    width = pooler.kv.out_features // 2
    return AttentionPooler(
        query=Weight(pooler, "latent"),
        key=Linear(pooler.kv, rows=(0, width)),
        value=Linear(pooler.kv, rows=(width, 2 * width)),
        out=_map(pooler.proj),
        num_heads=pooler.num_heads,
        query_proj=_map(pooler.q),
        q_norm=norm(pooler.q_norm),
        k_norm=norm(pooler.k_norm),
        positions=None if pooler.pos_embed is None else Weight(pooler, "pos_embed"),
        mlp=None if pooler.mlp is None else mlp(pooler.mlp),
        mlp_norm=norm(pooler.norm),
        pool="first" if pooler.pool == "token" else "mean",
        num_skipped=num_skipped,
    )


def _map(module: nn.Module) -> Linear | None:
    """A linear layer; None for nothing."""
    return None if type(module) is nn.Identity else Linear(module)
