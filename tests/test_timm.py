"""Models of timm: classes as prompts, models without classes, what is refused, and weights that change."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from library_oracle import timm_features, timm_legrad
from PIL import Image
from torch import nn

from avgrad import CheckpointError, Localizer, UnsupportedModelError, attribute, load
from avgrad.errors import PromptError
from avgrad.models import registry, timm_names
from avgrad.models.timm import TimmModel
from avgrad.models.timm_view import model_view, trunk_view

SMALL = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 4}
VIT = "vit_base_patch16_224"


def _model(architecture: str = VIT, **shape: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(architecture, **{**SMALL, **shape})
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as 0 and 1, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


# ------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"architecture": "deit3_base_patch16_224"},
        {"architecture": "beit_base_patch16_224"},
        {"global_pool": "avg", "class_token": False, "fc_norm": False},
        {"global_pool": "map", "reg_tokens": 1},
        {"dynamic_img_size": True, "patch_drop_rate": 0.5, "drop_path_rate": 0.3, "proj_drop_rate": 0.2},
    ],
    ids=str,
)
def test_prompts_of_a_classifier_are_its_rows(shape: dict[str, Any]) -> None:
    original = _model(**shape)
    model = TimmModel(original, "small")
    assert model.modalities == ("text",)
    pixels = torch.randn(2, 3, 64, 64)
    features = timm_features(original, pixels)
    torch.testing.assert_close(model.encode_image(pixels), F.normalize(features, dim=-1), rtol=0, atol=1e-5)
    prompts = model.encode_text(["3", "281", " 999 "])
    rows = original.head.weight[[3, 281, 999]]
    torch.testing.assert_close(prompts, F.normalize(rows, dim=-1), rtol=0, atol=1e-6)
    oracle = timm_legrad(original, pixels, classes=[3, 281, 999])
    closed = attribute(model.vision, pixels, rows, per_layer=True).flatten(-2)
    assert (closed - oracle).abs().amax() < 2e-6 * oracle.amax()


def test_the_score_is_the_logit() -> None:
    """The last layer's map of the class token is made of the gradient of the model's own logit."""
    original = _model()
    model = TimmModel(original, "small")
    attention = original.blocks[-1].attn
    attention.fused_attn = False
    seen: list[torch.Tensor] = []

    def keep(_: Any, inputs: tuple[torch.Tensor]) -> None:
        seen.append(inputs[0].requires_grad_())
        inputs[0].retain_grad()

    handle = attention.attn_drop.register_forward_pre_hook(keep)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.enable_grad():
        logit = original(pixels)[0, 281]
    handle.remove()
    (gradient,) = torch.autograd.grad(logit, seen)
    expected = gradient.relu().mean((1, 2))[0, 1:].view(4, 4)
    row = original.head.weight[281]
    actual = attribute(model.vision, pixels, row[None], layers=-1, pooling="cls", per_layer=True)[0, 0, 0]
    assert (actual - expected).abs().amax() < 2e-6 * expected.amax()


def test_a_distilled_model_has_the_logits_of_both_heads() -> None:
    original = _model("deit_base_distilled_patch16_224")
    model = TimmModel(original, "small")
    pixels = torch.randn(2, 3, 64, 64)
    features = model.vision.output(model.vision.tokens(pixels))
    bias = (original.head.bias + original.head_dist.bias) / 2
    rows = torch.cat([original.head.weight, original.head_dist.weight], dim=1)
    torch.testing.assert_close(features @ rows.T / 2 + bias, original(pixels), rtol=0, atol=1e-4)
    prompts = model.encode_text(["281", "7"])
    torch.testing.assert_close(prompts, F.normalize(rows[[281, 7]], dim=-1), rtol=0, atol=1e-6)


def test_classes_by_name() -> None:
    model = TimmModel(_model(), "small")
    assert model.class_index("281") == model.class_index("tabby") == model.class_index("Tabby, tabby cat ") == 281
    for label, message in (
        ("crane", "'crane' names classes 134 and 517 of small; give an index"),
        ("tabbi", "small has no class 'tabbi'; close are tabby"),
        ("qqqqqqq", "expected the name of a class or its index"),
        ("1000", "its classes are 0 to 999"),
    ):
        with pytest.raises(PromptError, match=message):
            model.encode_text([label])
    nameless = TimmModel(_model(num_classes=7), "small")
    assert nameless.class_names is None
    assert nameless.encode_text(["6"]).shape == (1, 48)
    with pytest.raises(PromptError, match="classes of small have no names"):
        nameless.encode_text(["tabby"])


def test_localizing_classes() -> None:
    model = TimmModel(_model(), "small")
    image = Image.effect_noise((96, 64), 80).convert("RGB")
    localizer = Localizer(model)
    localizer.set_image(image)
    result = localizer.localize(text=["tabby", "282"], image=image)
    assert [(prompt.label, prompt.modality) for prompt in result.prompts] == [
        ("tabby", "text"),
        ("282", "text"),
        ("image 1", "image"),
    ]
    assert result.heatmaps.shape == (3, 64, 96)
    with pytest.raises(UnsupportedModelError, match="small takes text and image prompts, not sounds"):
        localizer.localize(audio="siren.wav")


@pytest.mark.parametrize("architecture", ["vit_base_patch16_dinov3", "vit_base_patch16_siglip_224"])
def test_models_without_classes_take_images(architecture: str) -> None:
    original = _model(architecture)
    model = TimmModel(original, "small")
    assert model.modalities == ()
    assert model.num_classes == 0
    pixels = torch.randn(2, 3, 64, 64)
    expected = F.normalize(original(pixels), dim=-1)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    image = Image.effect_noise((96, 64), 80).convert("RGB")
    localizer = Localizer(model)
    localizer.set_image(image)
    assert localizer.localize(image=image).heatmaps.shape == (1, 64, 96)
    with pytest.raises(PromptError, match="small has no classes; images and embeddings are accepted"):
        model.encode_text(["tabby"])


@pytest.mark.parametrize("architecture", ["vit_base_patch16_clip_quickgelu_224", "vit_pe_core_base_patch16_224"])
def test_the_head_of_a_clip_model_is_its_projection(architecture: str) -> None:
    original = _model(architecture)
    model = TimmModel(original, "small")
    assert model.modalities == ()
    pixels, prompts = torch.randn(2, 3, 64, 64), torch.randn(2, original.num_classes)
    expected = F.normalize(original(pixels), dim=-1)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    assert attribute(model, pixels, prompts).shape == (2, 2, 64, 64)
    # fine-tuned on ImageNet it is a classifier
    assert TimmModel(_model(architecture, num_classes=1000), "small").modalities == ("text",)


def test_preprocessing_is_the_librarys() -> None:
    original = _model()
    model = TimmModel(original, "small")
    image = Image.effect_noise((200, 150), 80).convert("RGB")
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(original))
    assert torch.equal(model.pixels(image), transform(image))
    whole = model.preprocess.whole(image)
    assert whole.shape == (3, 224, 304)  # the size that the library names for this architecture, in whole patches
    assert -1 <= whole.min() < whole.max() <= 1  # mean and deviation of 0.5
    oblong = TimmModel(_model(patch_size=(16, 8)), "small")
    assert oblong.preprocess.whole(image).shape == (3, 224, 304)


def test_a_localizer_refuses_the_class_token_of_a_model_without_one() -> None:
    """Without the refusal it would explain the first patch in the class token's place."""
    trunk = timm.models.VisionTransformer(**SMALL, class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match="needs a class token"):
        Localizer(TimmModel(trunk, "small"), pooling="cls")


# ------------------------------------------------------------------ what is refused


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
    ids=str,
)
def test_changed_models_are_refused(change: Callable[[Any], None], message: str) -> None:
    model = _model()
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
        trunk_view(_model(**shape), "odd")


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
            model = _model(architecture, **({} if architecture.startswith("beit") else {"global_pool": "map"}))
            model.get_submodule(path).bypass = part
            with pytest.raises(UnsupportedModelError, match="has a part 'bypass', which is not known here"):
                TimmModel(model, "odd")


def test_a_model_whose_embedding_is_another_is_refused() -> None:
    """Whatever an adapter may not see: here a class that keeps its parent's name."""
    model = _model()
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


# ------------------------------------------------------------------ weights that change


@pytest.mark.parametrize(
    "architecture", [VIT, "beit_base_patch16_224", "vit_base_patch16_rope_mixed_224", "deit_base_distilled_patch16_224"]
)
def test_a_view_follows_its_model(architecture: str) -> None:
    def check(model: TimmModel, original: Any) -> None:
        tolerance = 1e-5 if model.dtype == torch.float32 else 2e-2
        expected = F.normalize(timm_features(original, pixels.to(model.dtype)).float(), dim=-1)
        torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=tolerance)
        classes = model.encode_text(["1"])
        assert attribute(model, pixels, classes).shape == (1, 1, 64, 64)

    original, other = _model(architecture), _model(architecture)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model, pixels = TimmModel(original, "small"), torch.randn(1, 3, 64, 64)
    before = model.encode_image(pixels)
    original.load_state_dict(other.state_dict(), assign=True)
    assert (model.encode_image(pixels) - before).norm() > 0.05
    check(model, original)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        check(twin, twin.model)
        with torch.no_grad():
            next(iter(twin.model.blocks.parameters())).zero_()  # its weights are its own
    check(model, original)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    check(torch.load(buffer, weights_only=False), original)
    original.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    check(model, original)


@pytest.mark.parametrize(
    "architecture",
    [
        "beit_base_patch16_224",
        "vit_relpos_base_patch16_224",
        "eva02_base_patch16_clip_224",
        "vit_base_patch16_rope_mixed_224",
    ],
)
def test_another_size_changes_nothing_in_the_model(architecture: str) -> None:
    original = _model(architecture)
    view, pixels = model_view(original, "small"), torch.randn(1, 3, 64, 64)
    before, state = view.encode(pixels), copy.deepcopy(dict(original.named_buffers()) | original.state_dict())
    view.encode(torch.randn(1, 3, 96, 32))
    after = dict(original.named_buffers()) | original.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert torch.equal(view.encode(pixels), before)


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


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = timm.create_model("vit_tiny_patch16_224").eval()
    torch.save(original.state_dict(), tmp_path / "tiny.pt")
    model = load("timm:vit_tiny_patch16_224", checkpoint=tmp_path / "tiny.pt")
    assert isinstance(model, TimmModel)
    assert model.name == "timm:vit_tiny_patch16_224"
    pixels = torch.randn(1, 3, 224, 224)
    expected = F.normalize(timm_features(original, pixels), dim=-1)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    (tmp_path / "broken.pt").write_bytes((tmp_path / "tiny.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load("timm:vit_tiny_patch16_224", checkpoint=tmp_path / "broken.pt")


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
@pytest.mark.parametrize(
    "name", [VIT, "eva02_base_patch14_224", "beit_base_patch16_224", "vit_base_patch14_reg4_dinov2"]
)
def test_true_size(name: str) -> None:
    torch.manual_seed(0)
    original = timm.create_model(name, img_size=224).eval()
    model = TimmModel(original, name)
    pixels = torch.randn(1, 3, 224, 224)
    features = timm_features(original, pixels)
    torch.testing.assert_close(model.encode_image(pixels), F.normalize(features, dim=-1), rtol=0, atol=1e-5)
    prompts = F.normalize(torch.randn(1, features.shape[-1]), dim=-1)
    oracle = timm_legrad(original, pixels, prompts=prompts)
    view = trunk_view(original, name)
    closed = attribute(view, pixels, prompts, per_layer=True).flatten(-2)
    assert (closed - oracle).abs().amax() < 2e-5 * oracle.amax()
