"""What of timm is accepted and what is refused: changed models, unknown parts, and every name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from test_timm import VIT, small
from torch import nn

from avgrad import UnsupportedModelError, load
from avgrad.models import registry, timm_names
from avgrad.models.timm import TimmModel
from avgrad.models.timm_embed import embed_of
from avgrad.models.timm_view import model_view, trunk_view


class LoraLinear(nn.Linear):
    """As peft adds a low-rank product to a linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x[..., :1]


def _replaced(path: str, make: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))

    return change


def _lora(layer: Any) -> nn.Module:
    wrapped = LoraLinear(layer.in_features, layer.out_features)
    wrapped.load_state_dict(layer.state_dict())
    return wrapped


def _hook(model: Any) -> None:
    model.blocks[1].mlp.register_forward_hook(lambda *_: None)


def _pre_hook(model: Any) -> None:
    model.patch_embed.register_forward_pre_hook(lambda *_: None)


def _forward(model: Any) -> None:
    model.blocks[1].attn.forward = lambda x, **_: x


def _weight_norm(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.blocks[0].attn.qkv)


def _quantized(model: Any) -> None:
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_replaced("blocks.1.attn.qkv", _lora), "LoraLinear stands where"),
        (_replaced("blocks.0.mlp.fc2", _lora), "LoraLinear stands where"),
        (_replaced("head", _lora), "LoraLinear stands where"),
        (_quantized, "Linear.* stands where"),
        (_weight_norm, "Linear.*"),
        (_hook, "Mlp has forward hooks"),
        (_pre_hook, "PatchEmbed has forward hooks"),
        (_forward, "forward method of a Attention was replaced"),
        (_replaced("blocks.2", lambda block: nn.Sequential(block)), "blocks are Sequential"),
        (_replaced("blocks.2.mlp", lambda _: nn.Linear(48, 48)), "MLP is a Linear"),
        (_replaced("blocks.2.mlp.act", lambda _: nn.ELU()), "activation is ELU"),
        (_replaced("blocks.2.norm1", lambda _: nn.BatchNorm1d(48)), "BatchNorm1d where a LayerNorm or RMSNorm"),
        (_replaced("blocks.2.norm1", lambda _: nn.Identity()), "no norm where one is expected"),
        (_replaced("blocks.2.ls1", lambda _: nn.Linear(48, 48)), "Linear where a LayerScale"),
        (_replaced("fc_norm", lambda _: nn.LayerNorm(48)), "final norm both before and after"),
        (_replaced("patch_embed", lambda _: nn.Conv2d(3, 48, 16, 16)), "patches are made by Conv2d"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # names of functions hold their addresses
)
def test_changed_models_are_refused(change: Callable[[Any], None], message: str) -> None:
    model = small()
    change(model)
    with pytest.raises(UnsupportedModelError, match=f"odd cannot be explained: .*{message}"):
        TimmModel(model, "odd")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"global_pool": "max"}, "pooling is 'max'"),
        ({"global_pool": "avgmax"}, "pooling is 'avgmax'"),
        ({"global_pool": ""}, "pooling is ''"),
        ({"global_pool": "prr"}, "pooling is 'prr'"),
        ({"norm_layer": "simplenorm"}, "SimpleNorm where a LayerNorm or RMSNorm is expected"),
        ({"act_layer": "tanh"}, "activation is Tanh"),
        ({"architecture": "samvit_base_patch16"}, "it is a VisionTransformerSAM"),
        ({"architecture": "cait_xxs24_224"}, "it is a Cait"),
    ],
    ids=str,
)
def test_models_that_the_view_cannot_express_are_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"odd cannot be explained: .*{message}"):
        trunk_view(small(**shape), "odd")


@pytest.mark.parametrize(
    ("architecture", "paths"),
    [
        (VIT, ["", "patch_embed", "blocks.1", "blocks.1.attn", "blocks.1.mlp", "attn_pool", "attn_pool.mlp"]),
        ("vit_pe_core_base_patch16_224", ["", "blocks.0", "blocks.0.attn", "attn_pool"]),
        ("beit_base_patch16_224", ["", "blocks.0", "blocks.0.attn"]),
        ("vit_base_patch16_xp_224", ["blocks.0"]),
        ("vit_base_patch16_18x2_224", ["blocks.0", "blocks.0.attns.1", "blocks.0.ffns.0"]),
    ],
)
def test_a_part_that_is_not_known_is_refused(architecture: str, paths: list[str]) -> None:
    """Other releases of timm may put more into the same classes."""
    for path in paths:
        for part in (nn.Linear(48, 48), nn.Parameter(torch.ones(48))):
            model = small(architecture, **({} if architecture.startswith("beit") else {"global_pool": "map"}))
            model.get_submodule(path).bypass = part
            with pytest.raises(UnsupportedModelError, match="has a part 'bypass', which is not known here"):
                TimmModel(model, "odd")


def test_a_model_whose_embedding_is_another_is_refused() -> None:
    """Whatever an adapter may not see: here a class that keeps its parent's name."""
    model = small()
    model.blocks[0].norm1.eps = 0.5
    model_view(model, "odd")  # weights and constants are read when they are used
    attention = type(model.blocks[0].attn)
    original = attention.forward
    try:
        attention.forward = lambda self, x, **_: 1.1 * original(self, x)  # type: ignore[method-assign]
        with pytest.raises(UnsupportedModelError, match="at 64 x 64 pixels its own image embedding differs"):
            model_view(model, "odd")
    finally:
        attention.forward = original  # type: ignore[method-assign]


# ------------------------------------------------------------------ names


def test_names_that_are_none() -> None:
    for name, message in (
        ("timm:vit_base_patch99_224", "timm has no model 'vit_base_patch99_224'"),
        ("timm:vit_base_patch16_224.nobody", "no weights 'nobody' for vit_base_patch16_224.*augreg2_in21k_ft_in1k"),
        ("timm:resnet50", "resnet50 cannot be explained: it is not a vision transformer .timm.models.resnet"),
        ("timm:xcit_nano_12_p8_224", "its attention is between channels"),
        ("timm:swin_tiny_patch4_window7_224", "attends within windows"),
        ("timm:", "there is no model"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            load(name)


def test_listing() -> None:
    listed = {entry.name: entry for entry in registry.entries("timm:*")}
    assert "augreg2_in21k_ft_in1k" in listed["timm:vit_base_patch16_224.TAG"].weights
    assert listed["timm:deit_base_patch16_224.TAG"].modalities == ("class",)
    assert listed["timm:vit_base_patch16_siglip_224.TAG"].modalities == ("image",)
    assert "timm:resnet50.TAG" not in listed
    assert "timm:vit_base_patch16_dinov3.lvd1689m" in registry.list_models("timm:*dinov3*")


def test_every_name() -> None:
    """All names of the modules of single-scale transformers are accepted, and all others are refused with a reason."""
    refused = dict(timm_names.refused())
    names = timm.list_models()
    modules = Counter(timm_names.module_of(name) for name in names if name not in refused)
    assert set(modules) == set(timm_names.MODULES)
    assert all(timm_names.module_of(name) not in timm_names.MODULES for name in refused)
    assert modules.total() >= 306  # all that timm 1.0.31 has
    assert len(refused) == len(names) - modules.total()
    assert len(set(refused.values())) > 30
    assert set(timm_names.REASONS) <= {timm_names.module_of(name) for name in names}


@pytest.mark.slow
@torch.no_grad()
def test_every_name_takes_other_sizes() -> None:
    """One block of each architecture, without memory, at the model's own size and at 3 x 5 patches."""
    names = [name for name in timm.list_models() if timm_names.module_of(name) in timm_names.MODULES]
    for name in names:
        model = timm_names.shell(name).eval()
        view = trunk_view(model, name)
        height, width = view.patch_shape
        for size in (embed_of(model)[2], (3 * height, 5 * width)):
            with torch.device("meta"):
                pixels = torch.empty(1, 3, *size)
                rows, columns = view.grid(pixels)
                tokens = view.embed(pixels)
                assert tokens.shape[1] == view.num_prefix_tokens + rows * columns, name
                assert view.output(view.blocks[0](tokens, (rows, columns))).shape == (1, view.embed_dim), name
