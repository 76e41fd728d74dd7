"""The views of transformers' ViT, DeiT and BEiT."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from avgrad.engine.attention import Grid
from avgrad.engine.blocks import PreNorm
from avgrad.engine.heads import Head, Tail
from avgrad.engine.norms import Norm
from avgrad.engine.view import ViTView
from avgrad.models.huggingface_parts import (
    Embed,
    attention,
    expect,
    features,
    layer_scale,
    mlp,
    pair,
    prove,
)
from avgrad.models.view import check_unwrapped, views

VIT = "transformers.models.vit.modeling_vit.ViT"
DEIT = "transformers.models.deit.modeling_deit.DeiT"
BEIT = "transformers.models.beit.modeling_beit.Beit"


class RelativeBias:
    """BEiT's relative position bias: the table shared by all layers, the layer's own, or both.

    Args:
        *tables: the library's modules, which resample the tables to other grids; None is left out.
    """

    def __init__(self, *tables: nn.Module | None) -> None:
        self.tables = [table for table in tables if table is not None]

    def __call__(self, grid: Grid) -> Tensor:
        """`[h, n, n]`."""
        bias: Tensor = sum(table(grid)[0] for table in self.tables)
        return bias


def _block(layer: Any, shared: nn.Module | None = None) -> PreNorm:
    expect(layer, "ViTLayer", "DeiTLayer", "BeitLayer")
    expect(layer.attention, "ViTAttention", "DeiTAttention", "BeitAttention")
    expect(layer.mlp, "ViTMLP", "DeiTMLP", "BeitMLP")
    own = getattr(layer, "relative_position_bias", None)
    bias = None if own is None and shared is None else RelativeBias(shared, own)
    scales = [layer_scale(layer, key) if hasattr(layer, key) else None for key in ("lambda_1", "lambda_2")]
    return PreNorm(
        Norm(layer.layernorm_before),
        attention(layer.attention, "o_proj", bias=bias),
        Norm(layer.layernorm_after),
        mlp(layer.mlp),
        *scales,
    )


def _trunk(trunk: Any, **options: Any) -> ViTView:
    """The view of a bare model, given what stands behind its blocks."""
    expect(trunk, "ViTModel", "DeiTModel", "BeitModel")
    embeddings = trunk.embeddings
    patches, beit = embeddings.patch_embeddings, type(trunk).__name__ == "BeitModel"
    height, width = pair(patches.patch_size)
    return ViTView(
        embed=Embed(embeddings, None if beit else pair(patches.image_size)),
        blocks=[_block(layer, getattr(trunk, "shared_position_bias", None)) for layer in trunk.layers],
        patch_size=height if height == width else (height, width),
        num_prefix_tokens=2 if type(trunk).__name__ == "DeiTModel" else 1,
        **options,
    )


def _size(trunk: Any) -> tuple[int, int] | None:
    """The only size that a model takes: positions of a grid that is not square are not resampled by the library."""
    patches = trunk.embeddings.patch_embeddings
    (height, width), patch = pair(patches.image_size), pair(patches.patch_size)
    return None if height // patch[0] == width // patch[1] else (height, width)


@views(f"{VIT}ForImageClassification", f"{DEIT}ForImageClassification", f"{DEIT}ForImageClassificationWithTeacher")
def classifier_view(model: Any, name: str) -> ViTView:
    trunk = model.vit if hasattr(model, "vit") else model.deit
    check_unwrapped(trunk)
    if hasattr(model, "classifier"):
        layers, head, pool = [model.classifier], Head(Norm(trunk.layernorm), cosine=False), "cls"
    else:  # the mean of two classifiers' logits, one of the class token, the other of the distillation token
        layers = [model.cls_classifier, model.distillation_classifier]
        head, pool = Head(Norm(trunk.layernorm), cosine=False, num_pooled=2), "prefix"
    size = _size(trunk)
    view = _trunk(trunk, head=head, pool=pool, image_size=size)

    def own(pixels: Tensor) -> Tensor:
        return features(model, layers, pixels, interpolate_pos_encoding=size is None)

    return prove(view, own, name, size)


@views(f"{VIT}Model", f"{DEIT}Model")
def bare_view(model: Any, name: str) -> ViTView:
    """Without its pooler (a linear layer and an activation) the embedding is the class token behind the final norm."""
    check_unwrapped(model)
    pooler = None if model.pooler is None else expect(model.pooler, "ViTPooler", "DeiTPooler")
    tail = None if pooler is None else Tail(_Pooler(pooler), pooler.dense.out_features)
    size = _size(model)
    view = _trunk(model, head=Head(Norm(model.layernorm), tail), image_size=size)

    def own(pixels: Tensor) -> Tensor:
        output = model(pixels, interpolate_pos_encoding=size is None)
        embedding: Tensor = output.last_hidden_state[:, 0] if pooler is None else output.pooler_output
        return embedding

    return prove(view, own, name, size)


class _Pooler:
    """A pooler's linear layer and activation, of pooled tokens `[N, d]`."""

    def __init__(self, pooler: Any) -> None:
        self.pooler = pooler

    def __call__(self, token: Tensor) -> Tensor:
        embedding: Tensor = self.pooler.activation(self.pooler.dense(token))
        return embedding


@views(f"{BEIT}Model", f"{BEIT}ForImageClassification")
def beit_view(model: Any, name: str) -> ViTView:
    """Its pooler is the class token, or the mean of the patches with a norm behind it."""
    trunk, classifier = getattr(model, "beit", model), getattr(model, "classifier", None)
    check_unwrapped(trunk)
    norm = None if trunk.pooler is None else expect(trunk.pooler, "BeitPooler").layernorm
    final = norm if isinstance(trunk.layernorm, nn.Identity) else trunk.layernorm
    head = Head(None if final is None else Norm(final), cosine=classifier is None)
    pool = "cls" if norm is None else "mean"
    view = _trunk(trunk, head=head, pool=pool, norm_before_pool=norm is None)

    def own(pixels: Tensor) -> Tensor:
        if classifier is not None:
            return features(model, [classifier], pixels)
        output = model(pixels)
        embedding: Tensor = output.last_hidden_state[:, 0] if trunk.pooler is None else output.pooler_output
        return embedding

    return prove(view, own, name)
