"""Small random models of transformers, one of each kind, with what the oracle needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import library_oracle_clip as oracle
import torch
import transformers as tf
from library_oracle_clip import Score, shaken
from torch import Tensor, nn

SIDE = 8  # of a patch
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": SIDE,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass
class Small:
    """A model of transformers.

    Attributes:
        model: in float64, its weights all random.
        run: one forward pass for pixels of any size, `own` its image embedding `[B, D]`.
        blocks: its blocks.
        head: from a pooled token (with a pooler, from a layer's tokens) to the embedding, by its own layers.
        num_prefix_tokens, cosine, pooled: as the oracle takes them; pooled says that it has an attention pooler.
    """

    model: Any
    own: Callable[[Tensor], Tensor]
    blocks: Sequence[nn.Module]
    head: Score
    num_prefix_tokens: int = 1
    cosine: bool = True
    pooled: bool = False
    other_sizes: Sequence[tuple[int, int]] = field(default=((32, 32), (40, 32), (16, 56)))

    def legrad(self, pixels: Tensor, prompts: Tensor, pooling: str) -> Tensor:
        """The oracle's maps `[B, P, L, patches]`."""
        parts: Any = (lambda: self.own(pixels), self.blocks, self.head, prompts)
        options: Any = {"num_prefix_tokens": self.num_prefix_tokens, "cosine": self.cosine}
        return (
            oracle.legrad_pooled(*parts, **options)
            if self.pooled
            else oracle.legrad(*parts, **options, pooling=pooling)
        )


def _read(model: Any, layers: Sequence[nn.Module], pixels: Tensor, **options: Any) -> Tensor:
    """What the last layers of a classifier read, from their own inputs."""
    found: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for layer in layers]
    model(pixels, **options)
    for hook in hooks:
        hook.remove()
    return torch.cat(found, -1)


def _twice(norm: nn.Module) -> Score:
    return lambda token: torch.cat([norm(token)] * 2, -1)


def clip_like(config: type, cls: type, **changes: Any) -> Small:
    vision = {**VISION, "projection_dim": 16, **changes}
    model = shaken(cls(config(text_config=TEXT, vision_config=vision, projection_dim=16)))
    trunk = model.vision_model
    return Small(
        model,
        lambda pixels: model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output,
        trunk.encoder.layers,
        lambda token: model.visual_projection(trunk.post_layernorm(token)),
    )


def clip_vision(cls: type) -> Small:
    model = shaken(cls(tf.CLIPVisionConfig(**VISION, projection_dim=16)))
    if cls is tf.CLIPVisionModel:
        own = lambda pixels: model(pixels, interpolate_pos_encoding=True).pooler_output  # noqa: E731
        return Small(model, own, model.encoder.layers, model.post_layernorm)
    trunk = model.vision_model
    return Small(
        model,
        lambda pixels: model(pixels, interpolate_pos_encoding=True).image_embeds,
        trunk.encoder.layers,
        lambda token: model.visual_projection(trunk.post_layernorm(token)),
    )


def clip_classifier() -> Small:
    model = shaken(tf.CLIPForImageClassification(tf.CLIPConfig(text_config=TEXT, vision_config=VISION)))
    own = lambda pixels: _read(model, [model.classifier], pixels, interpolate_pos_encoding=True)  # noqa: E731
    return Small(model, own, model.vision_model.encoder.layers, lambda token: token, cosine=False)


def siglip(cls: type = tf.SiglipModel) -> Small:
    config = tf.SiglipConfig(text_config=TEXT, vision_config=VISION)
    model = shaken(cls(config) if cls is tf.SiglipModel else cls(config.vision_config))
    trunk = getattr(model, "vision_model", model)
    return Small(
        model,
        lambda pixels: trunk(pixels, interpolate_pos_encoding=True).pooler_output,
        trunk.encoder.layers,
        trunk.head,
        0,
        pooled=True,
    )


def siglip2(cls: type = tf.Siglip2Model) -> Small:
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    model = shaken(cls(tf.Siglip2Config(text_config=TEXT, vision_config={**VISION, "num_patches": 16})))
    trunk = model.vision_model

    def own(pixels: Tensor) -> Tensor:
        patches = torch.stack([convert_image_to_patches(image, SIDE) for image in pixels])
        shapes = torch.tensor([[side // SIDE for side in pixels.shape[-2:]]] * len(pixels))
        inputs = (patches, torch.ones(patches.shape[:2]).int(), shapes)
        if cls is tf.Siglip2Model:
            return model.get_image_features(*inputs).pooler_output
        return _read(model, [model.classifier], patches, pixel_attention_mask=inputs[1], spatial_shapes=shapes)

    if cls is not tf.Siglip2Model:
        return Small(model, own, trunk.encoder.layers, trunk.post_layernorm, 0, cosine=False)
    return Small(model, own, trunk.encoder.layers, trunk.head, 0, pooled=True)


def siglip_classifier() -> Small:
    model = shaken(tf.SiglipForImageClassification(tf.SiglipConfig(text_config=TEXT, vision_config=VISION)))
    trunk = model.vision_model
    own = lambda pixels: _read(model, [model.classifier], pixels, interpolate_pos_encoding=True)  # noqa: E731
    return Small(model, own, trunk.encoder.layers, trunk.post_layernorm, 0, cosine=False)


def vit(cls: type, **changes: Any) -> Small:
    deit = "DeiT" in cls.__name__
    model = shaken(cls((tf.DeiTConfig if deit else tf.ViTConfig)(**{**VISION, **changes})))
    trunk = getattr(model, "deit" if deit else "vit", model)
    prefix = 2 if deit else 1
    if trunk is model:
        head = lambda token: model.pooler.activation(model.pooler.dense(model.layernorm(token)))  # noqa: E731
        own = lambda pixels: model(pixels, interpolate_pos_encoding=True).pooler_output  # noqa: E731
        return Small(model, own, model.layers, head, prefix)
    layers = [layer for name, layer in model.named_children() if name.endswith("classifier")]
    own = lambda pixels: _read(model, layers, pixels, interpolate_pos_encoding=True)  # noqa: E731
    head = trunk.layernorm if len(layers) == 1 else _twice(trunk.layernorm)
    return Small(model, own, trunk.layers, head, prefix, cosine=False)


def vit_oblong() -> Small:
    """Positions of a grid that is not square, which the library does not resample."""
    model = shaken(tf.ViTForImageClassification(tf.ViTConfig(**{**VISION, "image_size": (32, 48)})))
    own = lambda pixels: _read(model, [model.classifier], pixels)  # noqa: E731
    return Small(model, own, model.vit.layers, model.vit.layernorm, cosine=False, other_sizes=((32, 48),))


def beit(cls: type = tf.BeitForImageClassification, **changes: Any) -> Small:
    model = shaken(cls(tf.BeitConfig(**VISION, layer_scale_init_value=0.5, **changes)))
    trunk = getattr(model, "beit", model)
    norm = trunk.pooler.layernorm if trunk.config.use_mean_pooling else trunk.layernorm
    if cls is tf.BeitModel:
        return Small(model, lambda pixels: model(pixels).pooler_output, trunk.layers, norm)
    own = lambda pixels: _read(model, [model.classifier], pixels)  # noqa: E731
    return Small(model, own, trunk.layers, norm, cosine=False)


def dinov2(cls: type, config: type = tf.Dinov2Config, **changes: Any) -> Small:
    model = shaken(cls(config(**VISION, **changes)))
    trunk = next((part for name, part in model.named_children() if name.startswith("dinov2")), model)
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    if trunk is model:
        return Small(model, lambda pixels: model(pixels).pooler_output, trunk.encoder.layer, trunk.layernorm, prefix)
    own = lambda pixels: _read(model, [model.classifier], pixels)  # noqa: E731
    return Small(model, own, trunk.encoder.layer, _twice(trunk.layernorm), prefix, cosine=False)


def dinov3(**changes: Any) -> Small:
    model = shaken(tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**VISION, layerscale_value=0.5, **changes)))
    prefix = 1 + model.config.num_register_tokens
    return Small(model, lambda pixels: model(pixels).pooler_output, model.model.layer, model.norm, prefix)


REGISTERS = tf.Dinov2WithRegistersConfig
BIAS = {"use_relative_position_bias": True}
SMALL: dict[str, Callable[[], Small]] = {
    "CLIP": lambda: clip_like(tf.CLIPConfig, tf.CLIPModel),
    "CLIP, gelu": lambda: clip_like(tf.CLIPConfig, tf.CLIPModel, hidden_act="gelu"),
    "CLIP vision": lambda: clip_vision(tf.CLIPVisionModel),
    "CLIP vision, projected": lambda: clip_vision(tf.CLIPVisionModelWithProjection),
    "CLIP classifier": clip_classifier,
    "MetaCLIP 2": lambda: clip_like(tf.MetaClip2Config, tf.MetaClip2Model),
    "AltCLIP": lambda: clip_like(tf.AltCLIPConfig, tf.AltCLIPModel),
    "ChineseCLIP": lambda: clip_like(tf.ChineseCLIPConfig, tf.ChineseCLIPModel),
    "SigLIP": siglip,
    "SigLIP vision": lambda: siglip(tf.SiglipVisionModel),
    "SigLIP classifier": siglip_classifier,
    "SigLIP 2 NaFlex": siglip2,
    "SigLIP 2 NaFlex, classifier": lambda: siglip2(tf.Siglip2ForImageClassification),
    "ViT": lambda: vit(tf.ViTModel),
    "ViT classifier": lambda: vit(tf.ViTForImageClassification, qkv_bias=False),
    "ViT classifier, oblong": vit_oblong,
    "DeiT": lambda: vit(tf.DeiTModel),
    "DeiT classifier": lambda: vit(tf.DeiTForImageClassification),
    "DeiT with teacher": lambda: vit(tf.DeiTForImageClassificationWithTeacher),
    "BEiT": lambda: beit(tf.BeitModel, **BIAS),
    "BEiT classifier": lambda: beit(**BIAS),
    "BEiT, shared bias": lambda: beit(use_shared_relative_position_bias=True, use_absolute_position_embeddings=True),
    "BEiT, both biases": lambda: beit(use_shared_relative_position_bias=True, **BIAS, use_mean_pooling=False),
    "DINOv2": lambda: dinov2(tf.Dinov2Model),
    "DINOv2, SwiGLU": lambda: dinov2(tf.Dinov2Model, use_swiglu_ffn=True),
    "DINOv2 classifier": lambda: dinov2(tf.Dinov2ForImageClassification),
    "DINOv2 with registers": lambda: dinov2(tf.Dinov2WithRegistersModel, REGISTERS, num_register_tokens=3),
    "DINOv2 with registers, classifier": lambda: dinov2(
        tf.Dinov2WithRegistersForImageClassification, REGISTERS, num_register_tokens=3
    ),
    "DINOv3": lambda: dinov3(num_register_tokens=4),
    "DINOv3, gated": lambda: dinov3(use_gated_mlp=True, hidden_act="silu"),
}
