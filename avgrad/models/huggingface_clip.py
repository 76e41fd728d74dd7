"""The views of transformers' CLIP, MetaCLIP 2, AltCLIP and ChineseCLIP, whose image towers are built alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from avgrad.engine.heads import Head
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear
from avgrad.engine.view import ViTView
from avgrad.models.huggingface_parts import Embed, clip_block, expect, features, pair, prove
from avgrad.models.view import check_unwrapped, views

CLIP = "transformers.models.clip.modeling_clip.CLIP"
META = "transformers.models.metaclip_2.modeling_metaclip_2.MetaClip2"
ALT = "transformers.models.altclip.modeling_altclip.AltCLIP"
CHINESE = "transformers.models.chinese_clip.modeling_chinese_clip.ChineseCLIP"
BOTH_TOWERS = [f"{family}Model" for family in (CLIP, META, ALT, CHINESE)]
VISION = [f"{family}VisionModel" for family in (CLIP, META, ALT, CHINESE)]
PROJECTED = [f"{family}VisionModelWithProjection" for family in (CLIP, META)]
CLASSIFIERS = [f"{family}ForImageClassification" for family in (CLIP, META)]

VISIONS = ("CLIPVisionModel", "MetaClip2VisionModel", "AltCLIPVisionModel", "ChineseCLIPVisionModel")
LAYERS = ("CLIPEncoderLayer", "MetaClip2EncoderLayer", "AltCLIPEncoderLayer", "ChineseCLIPVisionLayer")
ATTENTIONS = ("CLIPAttention", "MetaClip2Attention", "AltCLIPAttention", "ChineseCLIPVisionAttention")
MLPS = ("CLIPMLP", "MetaClip2MLP", "AltCLIPMLP", "ChineseCLIPVisionMLP")


def _trunk(vision: Any, head: Head, **options: Any) -> ViTView:
    """The view of an image tower, given what stands behind its blocks."""
    expect(vision, *VISIONS)
    for layer in vision.encoder.layers:
        expect(layer, *LAYERS)
        expect(layer.self_attn, *ATTENTIONS)
        expect(layer.mlp, *MLPS)
    embeddings = vision.embeddings
    return ViTView(
        embed=Embed(embeddings, pair(embeddings.image_size), vision.pre_layrnorm),
        blocks=[clip_block(layer) for layer in vision.encoder.layers],
        head=head,
        patch_size=embeddings.patch_size,
        **options,
    )


@views(*BOTH_TOWERS)
def clip_view(model: Any, name: str) -> ViTView:
    check_unwrapped(model.vision_model, model.visual_projection)
    vision, projection = model.vision_model, model.visual_projection
    view = _trunk(vision, Head(Norm(vision.post_layernorm), Linear(projection)))

    def own(pixels: Tensor) -> Tensor:
        embedding: Tensor = model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
        return embedding

    return prove(view, own, name)


@views(*VISION, *PROJECTED)
def clip_vision_view(model: Any, name: str) -> ViTView:
    check_unwrapped(model)
    vision, projection = getattr(model, "vision_model", model), getattr(model, "visual_projection", None)
    view = _trunk(vision, Head(Norm(vision.post_layernorm), None if projection is None else Linear(projection)))

    def own(pixels: Tensor) -> Tensor:
        output = model(pixels, interpolate_pos_encoding=True)
        embedding: Tensor = output.pooler_output if projection is None else output.image_embeds
        return embedding

    return prove(view, own, name)


@views(*CLASSIFIERS)
def clip_classifier_view(model: Any, name: str) -> ViTView:
    """Its classifier reads the mean of the patches, in front of the final norm."""
    check_unwrapped(model)
    view = _trunk(model.vision_model, Head(None, None, cosine=False), pool="mean")

    def own(pixels: Tensor) -> Tensor:
        return features(model, [model.classifier], pixels, interpolate_pos_encoding=True)

    return prove(view, own, name)
