"""The views of transformers' DINOv2, DINOv2 with registers, and DINOv3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avgrad.engine.attention import Grid
from avgrad.engine.blocks import PreNorm
from avgrad.engine.heads import Head
from avgrad.engine.norms import Norm
from avgrad.engine.view import ViTView
from avgrad.models.huggingface_parts import Embed, attention, expect, features, layer_scale, mlp, pair, prove
from avgrad.models.view import check_unwrapped, views

DINOV2 = "transformers.models.dinov2.modeling_dinov2.Dinov2"
REGISTERS = "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegisters"
DINOV3 = "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViT"

LAYERS = ("Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer")
ATTENTIONS = ("Dinov2Attention", "Dinov2WithRegistersAttention", "DINOv3ViTAttention")
MLPS = ("Dinov2MLP", "Dinov2WithRegistersMLP", "DINOv3ViTMLP", "DINOv3ViTGatedMLP")
SWIGLUS = ("Dinov2SwiGLUFFN", "Dinov2WithRegistersSwiGLUFFN")


class Rotary:
    """DINOv3's rotary positions: the library's angles, for the patches and not for the tokens in front of them.

    Args:
        embedding: the library's module.
        patch_size: height and width of a patch in pixels.
    """

    def __init__(self, embedding: nn.Module, patch_size: tuple[int, int]) -> None:
        self.embedding, self.patch_size = embedding, patch_size

    def __call__(self, q: Tensor, k: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        height, width = (count * side for count, side in zip(grid, self.patch_size, strict=True))
        # the module reads shape, device and dtype of pixels
        cos, sin = self.embedding(q.new_empty(1).expand(1, 1, height, width))
        return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    front, patches = x.split([x.shape[-2] - len(cos), len(cos)], dim=-2)
    first, second = patches.chunk(2, dim=-1)
    return torch.cat([front, patches * cos + torch.cat([-second, first], dim=-1) * sin], dim=-2)


def _block(layer: Any, rotary: Rotary | None = None) -> PreNorm:
    expect(layer, *LAYERS)
    expect(layer.attention, *ATTENTIONS)
    dinov2 = rotary is None and not hasattr(expect(layer.mlp, *MLPS, *SWIGLUS), "gate_proj")
    return PreNorm(
        Norm(layer.norm1),
        attention(layer.attention, "o_proj", rotary=rotary),
        Norm(layer.norm2),
        mlp(layer.mlp, "activation_fn" if dinov2 else "act_fn"),
        layer_scale(layer, "layer_scale1.lambda1"),
        layer_scale(layer, "layer_scale2.lambda1"),
    )


@views(f"{DINOV2}Model", f"{REGISTERS}Model", f"{DINOV2}ForImageClassification", f"{REGISTERS}ForImageClassification")
def dinov2_view(model: Any, name: str) -> ViTView:
    """Its classifier reads the class token and the mean of the patches, side by side."""
    trunk = next((getattr(model, key) for key in ("dinov2", "dinov2_with_registers") if hasattr(model, key)), model)
    check_unwrapped(trunk)
    expect(trunk, "Dinov2Model", "Dinov2WithRegistersModel")
    patches, classifier = trunk.embeddings.patch_embeddings, getattr(model, "classifier", None)
    height, width = pair(patches.patch_size)
    norm = Norm(trunk.layernorm)
    view = ViTView(
        embed=Embed(trunk.embeddings),
        blocks=[_block(layer) for layer in trunk.encoder.layer],
        head=Head(norm) if classifier is None else Head(norm, cosine=False, num_pooled=2),
        patch_size=height if height == width else (height, width),
        num_prefix_tokens=1 + getattr(trunk.config, "num_register_tokens", 0),
        pool="cls" if classifier is None else "cls_mean",
    )

    def own(pixels: Tensor) -> Tensor:
        embedding: Tensor = model(pixels).pooler_output if classifier is None else features(model, [classifier], pixels)
        return embedding

    return prove(view, own, name)


@views(f"{DINOV3}Model")
def dinov3_view(model: Any, name: str) -> ViTView:
    check_unwrapped(model)
    size = pair(model.config.patch_size)
    rotary = Rotary(expect(model.rope_embeddings, "DINOv3ViTRopePositionEmbedding"), size)
    view = ViTView(
        embed=Embed(model.embeddings),
        blocks=[_block(layer, rotary) for layer in model.model.layer],
        head=Head(Norm(model.norm)),
        patch_size=size[0] if size[0] == size[1] else size,
        num_prefix_tokens=1 + model.config.num_register_tokens,
    )

    def own(pixels: Tensor) -> Tensor:
        embedding: Tensor = model(pixels).pooler_output
        return embedding

    return prove(view, own, name)
