"""The views of timm's vision transformers against timm itself: every family, small and in float64."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from library_oracle import in_float64, timm_at_size, timm_features, timm_legrad
from timm.layers import GluMlp
from timm.models.vitamin import VitCfg

from avgrad import attribute
from avgrad.engine.methods import Pooling
from avgrad.models.timm_view import model_view

SMALL = {"img_size": (48, 64), "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4}
NAFLEX = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4, "pos_embed_grid_size": (4, 4)}
STEM = {"img_size": (64, 32), "embed_dim": 48, "depth": 2, "num_heads": 4}  # its patches are of 16 or 32 pixels
VIT = "vit_base_patch16_224"

# (architecture, what is said of it beside its size): every family, and what its members do not have
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": (VIT, {}),
    "mean, then norm": (VIT, {"global_pool": "avg"}),
    "mean of all tokens": (VIT, {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 2, "fc_norm": False}),
    "registers": (VIT, {"reg_tokens": 2, "init_values": 0.5, "no_embed_class": True, "num_classes": 0}),
    "no positions": (VIT, {"pos_embed": "none", "final_norm": False, "embed_norm_layer": "layernorm"}),
    "norm in front": (VIT, {"pre_norm": True, "act_layer": "quick_gelu", "qkv_bias": False}),
    "norms everywhere": (VIT, {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True}),
    "not square patches": (VIT, {"patch_size": (16, 8), "act_layer": "relu"}),
    "GEGLU": (VIT, {"mlp_layer": functools.partial(GluMlp, act_layer=torch.nn.GELU), "act_layer": "gelu"}),
    "GLU": (VIT, {"mlp_layer": GluMlp, "act_layer": "sigmoid"}),
    "BEiT-3": ("beit3_base_patch16_224", {}),
    "AIMv2": ("aimv2_large_patch14_224", {}),
    "DINOv2 giant": ("vit_giant_patch14_dinov2", {}),
    "RMSNorm": ("test_vit4", {}),
    "DeiT": ("deit_base_patch16_224", {}),
    "DeiT, distilled": ("deit_base_distilled_patch16_224", {}),
    "DeiT III": ("deit3_base_patch16_224", {}),
    "norm behind": ("vit_base_patch16_rpn_224", {}),
    "parallel": ("vit_base_patch16_xp_224", {}),
    "parallel, biases": ("vit_base_patch16_xp_224", {"qkv_bias": True, "init_values": 0.3, "qk_norm": False}),
    "parallel, fused": ("vit_pwee_patch16_reg1_gap_256", {}),
    "parallel things": ("vit_base_patch16_18x2_224", {"init_values": 0.3}),
    "differential": ("vit_dwee_patch16_reg1_gap_256", {}),
    "differential, norms": (VIT, {"attn_layer": "diff", "qk_norm": True, "scale_attn_norm": True}),
    "differential, parallel": ("vit_dpwee_patch16_reg1_gap_256", {}),
    "pooler": ("vit_base_patch16_siglip_224", {}),
    "pooler of a classifier": ("vit_base_patch16_siglip_224", {"num_classes": 7, "class_token": True}),
    "pooler of all tokens": (
        VIT,
        {"global_pool": "map", "reg_tokens": 1, "pool_include_prefix": True, "fc_norm": True},
    ),
    "NaFlex": ("naflexvit_base_patch16_siglip", {}),
    "NaFlex, mean": ("naflexvit_base_patch16_gap", {}),
    "NaFlex, aspect ratio": ("naflexvit_base_patch16_par_gap", {"embed_norm_layer": "layernorm"}),
    "NaFlex, factorized": ("naflexvit_base_patch16_parfac_gap", {}),
    "NaFlex, convolution": ("naflexvit_base_patch16_gap", {"embed_proj_type": "conv", "class_token": True}),
    "BEiT": ("beit_base_patch16_224", {}),
    "BEiT, shared": ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}),
    "BEiT, both": ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "global_pool": "token"}),
    "BEiT, SwiGLU": ("beit_base_patch16_224", {"swiglu_mlp": True, "scale_mlp": True, "use_abs_pos_emb": True}),
    "EVA": ("eva_giant_patch14_224", {}),
    "EVA-02": ("eva02_base_patch14_224", {}),
    "EVA-02, packed": ("eva02_small_patch14_224", {}),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", {}),
    "EVA-02 CLIP enormous": ("eva02_enormous_patch14_clip_224", {}),
    "EVA, gate": ("eva02_base_patch14_224", {"attn_type": "rope", "qkv_fused": True}),
    "DINOv3": ("vit_base_patch16_dinov3", {}),
    "DINOv3, biases": ("vit_base_patch16_dinov3_qkvb", {}),
    "DINOv3 huge": ("vit_huge_plus_patch16_dinov3", {}),
    "LingBot": ("vit_base_patch16_lingbot", {}),
    "Sapiens2": ("vit_base_patch16_sapiens2", {"num_kv_heads": 2}),
    "PE-Core": ("vit_pe_core_base_patch16_224", {}),
    "PE-Core, tiny": ("vit_pe_core_tiny_patch16_384", {}),
    "PE-Lang": ("vit_pe_lang_large_patch14_448", {}),
    "PE-Spatial": ("vit_pe_spatial_base_patch16_512", {}),
    "RoPE": ("vit_base_patch16_rope_224", {}),
    "RoPE, registers": ("vit_base_patch16_rope_reg1_gap_256", {}),
    "RoPE, mixed": ("vit_base_patch16_rope_mixed_224", {}),
    "RoPE, mixed, positions": ("vit_base_patch16_rope_mixed_ape_224", {}),
    "relative positions": ("vit_relpos_base_patch16_224", {}),
    "relative positions, class token": ("vit_relpos_base_patch16_cls_224", {}),
    "relative positions, table": ("vit_relpos_base_patch16_cls_224", {"rel_pos_type": "bias", "qk_norm": True}),
    "relative positions, shared": ("vit_srelpos_small_patch16_224", {}),
    "relative positions, Swin": ("vit_relpos_base_patch16_224", {"rel_pos_type": "mlp_swin"}),
    "relative positions, norm behind": ("vit_relpos_base_patch16_rpn_224", {}),
    "hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "MobileCLIP": ("vit_base_mci_224", {"embed_dim": 768}),
    "ViTamin": ("vitamin_small_224", {"embed_cfg": VitCfg((8, 12, 48), (1, 1, 1), 8)}),
}


def _family(name: str) -> Any:
    """A small model with random weights, in float64."""
    architecture, options = FAMILIES[name]
    torch.manual_seed(0)
    size = SMALL
    if architecture.startswith("naflexvit"):
        size = NAFLEX
    elif name in ("hybrid", "MobileCLIP", "ViTamin"):
        size = STEM
    model = timm.create_model(architecture, **{**size, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as 0 and 1, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _sizes(model: Any) -> list[tuple[int, int]]:
    """The model's own size, and another."""
    if isinstance(model, timm.models.naflexvit.NaFlexVit):
        return [(64, 64), (80, 32)]
    height, width = model.patch_embed.img_size
    return [(height, width), (width, 2 * height)]


@pytest.mark.parametrize("name", FAMILIES)
def test_view_and_closed_form(name: str) -> None:
    model = _family(name)
    view = model_view(model, name)
    naflex = isinstance(model, timm.models.naflexvit.NaFlexVit)
    projection = view.head.projection is not None
    if view.head.cosine:
        prompts = F.normalize(torch.randn(2, view.embed_dim, dtype=torch.float64), dim=-1)
        score: dict[str, Any] = {"prompts": prompts, "projection": projection}
    else:
        heads = [model.head] if not hasattr(model, "head_dist") else [model.head, model.head_dist]
        prompts = torch.cat([head.weight / len(heads) for head in heads], dim=1)[[0, 2]].detach()
        score = {"classes": [0, 2]}
    for size in _sizes(model):
        pixels = torch.randn(2, 3, *size, dtype=torch.float64)
        resized = timm_at_size(model, size)
        poolings: tuple[Pooling, ...] = ("mean", "cls") if view.num_prefix_tokens else ("mean",)
        with in_float64() if naflex else contextlib.nullcontext():
            expected = F.normalize(timm_features(resized, pixels, projection), dim=-1)
            oracle = {pooling: timm_legrad(resized, pixels, pooling=pooling, **score) for pooling in poolings}
        torch.testing.assert_close(view.encode(pixels), expected, rtol=0, atol=1e-10)
        for pooling in poolings:
            closed = attribute(view, pixels, prompts, pooling=pooling, per_layer=True).flatten(-2)
            assert closed.shape == (2, 2, 2, view.grid(pixels)[0] * view.grid(pixels)[1])
            assert oracle[pooling].amax() > 0
            assert (closed - oracle[pooling]).abs().amax() < 1e-10 * oracle[pooling].amax()
