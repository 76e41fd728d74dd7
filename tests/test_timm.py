"""Classifiers of timm on real models of many shapes, and on those that the view must refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from avgrad import CheckpointError, Localizer, MediaError, UnsupportedModelError, attribute, load
from avgrad.models import registry
from avgrad.models import timm as adapter
from avgrad.models.timm import TimmModel, classifier_view

SMALL = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 4}


def _model(architecture: str = "vit_base_patch16_224", **shape: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(architecture, **{**SMALL, **shape})
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms start as 0 and 1, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"architecture": "deit_base_patch16_224"},
        {"architecture": "deit3_base_patch16_224"},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False, "fc_norm": False},
        {"global_pool": "avg", "reg_tokens": 4, "no_embed_class": True, "class_token": False},
        {"reg_tokens": 2, "init_values": 0.5, "fc_norm": True},
        {"pre_norm": True, "act_layer": "quick_gelu", "qkv_bias": False},
        {"pos_embed": "none", "final_norm": False, "act_layer": "gelu_tanh", "embed_norm_layer": "layernorm"},
        {"global_pool": "map", "reg_tokens": 1},
        {"dynamic_img_size": True, "patch_drop_rate": 0.5, "drop_path_rate": 0.3, "proj_drop_rate": 0.2},
    ],
    ids=str,
)
def test_real_models_of_many_shapes(shape: dict[str, Any]) -> None:
    original = _model(**shape)
    model = TimmModel(original, "small")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = original.forward_head(original.forward_features(pixels), pre_logits=True)
        logits = original(pixels)
    expected = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    rows = original.head.weight[[3, 281, 999]]
    torch.testing.assert_close(features @ original.head.weight.T + original.head.bias, logits, rtol=0, atol=1e-4)
    prompts = model.encode_text(["3", "281", " 999 "])
    torch.testing.assert_close(prompts, torch.nn.functional.normalize(rows, dim=-1), rtol=0, atol=1e-6)
    # another size, not square; the library's own interpolation of its positions
    larger = torch.randn(1, 3, 48, 96)
    dynamic = _model(**{**shape, "dynamic_img_size": True})
    dynamic.load_state_dict(original.state_dict())
    with torch.no_grad():
        features = dynamic.forward_head(dynamic.forward_features(larger), pre_logits=True)
    expected = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(model.encode_image(larger), expected, rtol=0, atol=1e-5)
    for pooling in ("mean", "cls") if model.vision.num_prefix_tokens else ("mean",):
        closed = attribute(model.vision, larger, prompts, pooling=pooling, per_layer=True)  # type: ignore[arg-type]
        oracle = attribute(model.vision, larger, prompts, "legrad_autograd", pooling=pooling, per_layer=True)  # type: ignore[arg-type]
        assert oracle.amax() > 0
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


def test_classes_by_name() -> None:
    model = TimmModel(_model(), "small")
    assert model.class_index("281") == model.class_index("tabby") == model.class_index("Tabby, tabby cat ") == 281
    for label, message in (
        ("crane", "'crane' names classes 134 and 517 of small; say an index"),
        ("tabbi", "small has no class 'tabbi'; close are tabby"),
        ("qqqqqqq", "names of its classes and indices are expected"),
        ("1000", "its classes are 0 to 999"),
    ):
        with pytest.raises(MediaError, match=message):
            model.encode_text([label])
    nameless = TimmModel(_model(num_classes=7), "small")
    assert nameless.class_names is None
    assert nameless.encode_text(["6"]).shape == (1, 48)
    with pytest.raises(MediaError, match="have no names here"):
        nameless.encode_text(["tabby"])


def test_localizing_classes() -> None:
    model = TimmModel(_model(), "small")
    image = Image.effect_noise((96, 64), 80).convert("RGB")
    localizer = Localizer(model)
    localizer.set_image(image)
    result = localizer.localize(text=["tabby", "282"], image_prompts=image)
    assert [(prompt.label, prompt.modality) for prompt in result.prompts] == [
        ("tabby", "text"),
        ("282", "text"),
        ("image 1", "image"),
    ]
    assert result.heatmaps.shape == (3, 64, 96)
    with pytest.raises(UnsupportedModelError, match="cannot look for a sound"):
        localizer.localize(audio="siren.wav")


def test_preprocessing_is_the_librarys() -> None:
    original = _model()
    model = TimmModel(original, "small")
    image = Image.effect_noise((200, 150), 80).convert("RGB")
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(original))
    assert torch.equal(model.pixels(image), transform(image))
    whole = model.preprocess.whole(image)
    assert whole.shape == (3, 224, 304)  # the size that the library names for this architecture, in whole patches
    assert -1 <= whole.min() < whole.max() <= 1  # mean and deviation of 0.5


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"qk_norm": True}, "qk-norm"),
        ({"scale_attn_norm": True}, "Attention has a part 'norm'"),
        ({"scale_mlp_norm": True}, "MLP has a norm inside"),
        ({"mlp_layer": timm.layers.SwiGLU}, "MLP is a SwiGLU"),
        ({"mlp_layer": timm.layers.GluMlp}, "MLP is a GluMlp"),
        ({"act_layer": "silu"}, "activation is SiLU"),
        ({"norm_layer": "rmsnorm"}, "RmsNorm where a LayerNorm is expected"),
        ({"attn_layer": "diff"}, "DiffAttention"),
        ({"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, "ParallelScalingBlock"),
        ({"block_fn": timm.models.vision_transformer.ResPostBlock}, "ResPostBlock"),
        ({"global_pool": "max"}, "pooling is 'max'"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "mean of the patches and the tokens in front"),
        ({"num_classes": 0}, "no classifier"),
        ({"patch_size": (16, 8)}, "patches are not square"),
        ({"img_size": (64, 96)}, "not of a square grid"),
        ({"architecture": "deit_base_distilled_patch16_224"}, "VisionTransformerDistilled"),
        ({"architecture": "beit_base_patch16_224"}, "it is a Beit"),
        ({"architecture": "eva02_base_patch16_clip_224"}, "it is a Eva"),
    ],
    ids=str,
)
def test_models_that_the_view_cannot_express_are_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"odd cannot be explained: .*{message}"):
        TimmModel(_model(**shape), "odd")


def test_a_part_that_is_not_known_is_refused() -> None:
    """Other releases of timm may put more into the same classes."""
    for path in ("", "patch_embed", "blocks.1", "blocks.1.attn", "blocks.1.mlp", "attn_pool", "attn_pool.mlp"):
        for part in (torch.nn.Linear(48, 48), torch.nn.Parameter(torch.ones(48))):
            model = _model(global_pool="map")
            setattr(model.get_submodule(path), "gate", part)  # noqa: B010
            with pytest.raises(UnsupportedModelError, match="has a part 'gate', which is not known here"):
                TimmModel(model, "odd")


def test_names_that_are_none() -> None:
    for name, message in (
        ("timm:vit_base_patch99_224", "timm has no model 'vit_base_patch99_224'"),
        ("timm:vit_base_patch16_224.nobody", "no weights 'nobody' for vit_base_patch16_224.*augreg2_in21k_ft_in1k"),
        ("timm:resnet50", "resnet50 cannot be explained: it is defined in timm.models.resnet"),
        ("timm:vit_base_patch16_siglip_224.webli", "no classifier"),
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
    with torch.no_grad():
        expected = original.forward_head(original.forward_features(pixels), pre_logits=True)
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    (tmp_path / "broken.pt").write_bytes((tmp_path / "tiny.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load("timm:vit_tiny_patch16_224", checkpoint=tmp_path / "broken.pt")


def test_listing() -> None:
    listed = {entry.name: entry for entry in registry.entries()}
    assert "augreg2_in21k_ft_in1k" in listed["timm:vit_base_patch16_224.TAG"].weights
    assert listed["timm:deit_base_patch16_224.TAG"].modalities == ("class",)
    assert "transformers" in listed["open_clip:ViT-B-16-SigLIP/..."].weights
    assert "open_clip:coca_ViT-B-32/..." in listed
    for name in ("timm:vit_base_patch16_siglip_224.TAG", "timm:resnet50.TAG", "open_clip:EVA02-B-16/..."):
        assert name not in listed


@pytest.mark.slow
def test_every_listed_name_is_accepted() -> None:
    """All of timm's pretrained models: those that are listed at their true size, without memory."""
    listed = adapter.pretrained()
    accepted: set[str] = set()
    refused = 0
    for full in timm.list_models(pretrained=True):
        architecture, _, tag = full.partition(".")
        reason = adapter.refusal(full)
        assert (reason is None) == (tag in listed.get(architecture, {})), full
        if reason is not None:
            assert full in reason
            refused += 1
        elif architecture not in accepted:
            with torch.device("meta"):
                model = timm.create_model(full)
            assert len(classifier_view(model, full).blocks) == len(model.blocks)
            accepted.add(architecture)
    assert len(accepted) > 70
    assert refused > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "deit3_base_patch16_224", "vit_base_patch14_reg4_dinov2"])
def test_true_size(name: str) -> None:
    torch.manual_seed(0)
    original = timm.create_model(name, img_size=224, num_classes=1000, dynamic_img_size=True).eval()
    model = TimmModel(original, name)
    patch = model.vision.patch_size
    for pixels in (torch.randn(1, 3, 224, 224), torch.randn(1, 3, 32 * patch, 28 * patch)):
        with torch.no_grad():
            features = original.forward_head(original.forward_features(pixels), pre_logits=True)
        expected = torch.nn.functional.normalize(features, dim=-1)
        torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
        prompts = model.encode_text(["281"])
        closed = attribute(model.vision, pixels, prompts, layers=-1, per_layer=True)
        oracle = attribute(model.vision, pixels, prompts, "legrad_autograd", layers=-1, per_layer=True)
        assert (closed - oracle).abs().amax() < 2e-6 * oracle.amax()


def test_a_localizer_refuses_the_class_token_of_a_model_without_one() -> None:
    """Without the refusal it would explain the first patch in the class token's place."""
    trunk = timm.models.VisionTransformer(**SMALL, class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match="needs a class token"):
        Localizer(TimmModel(trunk, "small"), pooling="cls")
