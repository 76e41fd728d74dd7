"""The views of transformers' SigLIP and SigLIP 2. Their poolers look at the tokens behind the final norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avgrad.engine.heads import AttentionPooler, Head
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear, Weight
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError
from avgrad.models.huggingface_parts import Embed, clip_block, expect, features, mlp, pair, prove
from avgrad.models.view import check_unwrapped, views

SIGLIP = "transformers.models.siglip.modeling_siglip.Siglip"
SIGLIP2 = "transformers.models.siglip2.modeling_siglip2.Siglip2"


class NaflexEmbed:
    """SigLIP 2's embeddings of images of any shape, which take patches in a row.

    Args:
        embeddings: the library's module.
    """

    def __init__(self, embeddings: Any) -> None:
        self.embeddings = embeddings

    def __call__(self, pixels: Tensor) -> Tensor:
        patches, shapes = naflex_inputs(pixels, self.embeddings.patch_size)
        tokens: Tensor = self.embeddings(patches, shapes)
        return tokens


def naflex_inputs(pixels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Patches `[B, rows * columns, 3 side^2]`, channels last, of pixels `[B, 3, h, w]`; rows and columns, `[B, 2]`."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // side, width // side
    patches = pixels[..., : rows * side, : columns * side].reshape(batch, channels, rows, side, columns, side)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    return patches, torch.tensor([[rows, columns]], device=pixels.device).expand(batch, -1)


def _trunk(vision: Any, **options: Any) -> ViTView:
    """The view of an image tower, given what stands behind its blocks."""
    expect(vision, "SiglipVisionModel", "Siglip2VisionModel")
    for layer in vision.encoder.layers:
        expect(layer, "SiglipEncoderLayer", "Siglip2EncoderLayer")
        expect(layer.self_attn, "SiglipAttention", "Siglip2Attention")
        expect(layer.mlp, "SiglipMLP", "Siglip2MLP")
    embeddings = expect(vision.embeddings, "SiglipVisionEmbeddings", "Siglip2VisionEmbeddings")
    naflex = type(embeddings).__name__ == "Siglip2VisionEmbeddings"
    return ViTView(
        embed=NaflexEmbed(embeddings) if naflex else Embed(embeddings, pair(embeddings.image_size)),
        blocks=[clip_block(layer) for layer in vision.encoder.layers],
        patch_size=embeddings.patch_size,
        num_prefix_tokens=0,
        pool="mean",
        **options,
    )


def _pooler(vision: Any) -> AttentionPooler:
    if not vision.use_head:
        raise UnsupportedModelError("it has no pooler (vision_use_head is off), so that it gives no image embedding")
    head = expect(vision.head, "SiglipMultiheadAttentionPoolingHead", "Siglip2MultiheadAttentionPoolingHead")
    expect(head.mlp, "SiglipMLP", "Siglip2MLP")
    width = head.attention.embed_dim
    query, key, value = (
        Linear(head.attention, "in_proj_weight", "in_proj_bias", rows=(index * width, (index + 1) * width))
        for index in range(3)
    )
    return AttentionPooler(
        query=Weight(head, "probe"),
        query_proj=query,
        key=key,
        value=value,
        out=Linear(head.attention.out_proj),
        num_heads=head.attention.num_heads,
        mlp=mlp(head.mlp),
        mlp_norm=Norm(head.layernorm),
    )


def _inputs(vision: Any, pixels: Tensor) -> dict[str, Any]:
    """What the library's own image towers take."""
    if type(vision).__name__ == "SiglipVisionModel":
        return {"pixel_values": pixels, "interpolate_pos_encoding": True}
    patches, shapes = naflex_inputs(pixels, vision.embeddings.patch_size)
    mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=pixels.device)
    return {"pixel_values": patches, "spatial_shapes": shapes, "pixel_attention_mask": mask}


@views(f"{SIGLIP}Model", f"{SIGLIP2}Model", f"{SIGLIP}VisionModel", f"{SIGLIP2}VisionModel")
def siglip_view(model: Any, name: str) -> ViTView:
    vision = getattr(model, "vision_model", model)
    check_unwrapped(vision)
    view = _trunk(vision, head=Head(Norm(vision.post_layernorm)), pooler=_pooler(vision))

    def own(pixels: Tensor) -> Tensor:
        embedding: Tensor = vision(**_inputs(vision, pixels)).pooler_output
        return embedding

    return prove(view, own, name)


@views(f"{SIGLIP}ForImageClassification", f"{SIGLIP2}ForImageClassification")
def siglip_classifier_view(model: Any, name: str) -> ViTView:
    """Its classifier reads the mean of the tokens behind the final norm; the pooler is left out."""
    vision = model.vision_model
    check_unwrapped(vision)
    view = _trunk(vision, head=Head(Norm(vision.post_layernorm), cosine=False))

    def own(pixels: Tensor) -> Tensor:
        inputs = _inputs(vision, pixels)
        return features(model, [model.classifier], inputs.pop("pixel_values"), **inputs)

    return prove(view, own, name)
