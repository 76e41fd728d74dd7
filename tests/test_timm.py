"""Models of timm: classes as prompts, models without classes, and weights that change."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from library_oracle import timm_features, timm_legrad
from PIL import Image

import avgrad
from avgrad import CheckpointError, Localizer, UnsupportedModelError, attribute, load
from avgrad.errors import PromptError
from avgrad.models.timm import TimmModel
from avgrad.models.timm_view import model_view, trunk_view

SMALL = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 4}
VIT = "vit_base_patch16_224"


def small(architecture: str = VIT, **shape: Any) -> Any:
    """A small model with random weights."""
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
    original = small(**shape)
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
    original = small()
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
    original = small("deit_base_distilled_patch16_224")
    model = TimmModel(original, "small")
    pixels = torch.randn(2, 3, 64, 64)
    features = model.vision.output(model.vision.tokens(pixels))
    bias = (original.head.bias + original.head_dist.bias) / 2
    rows = torch.cat([original.head.weight, original.head_dist.weight], dim=1)
    torch.testing.assert_close(features @ rows.T / 2 + bias, original(pixels), rtol=0, atol=1e-4)
    prompts = model.encode_text(["281", "7"])
    torch.testing.assert_close(prompts, F.normalize(rows[[281, 7]], dim=-1), rtol=0, atol=1e-6)


def test_classes_by_name() -> None:
    model = TimmModel(small(), "small")
    assert model.class_index("281") == model.class_index("tabby") == model.class_index("Tabby, tabby cat ") == 281
    for label, message in (
        ("crane", "'crane' names classes 134 and 517 of small; give an index"),
        ("tabbi", "small has no class 'tabbi'; close are tabby"),
        ("qqqqqqq", "expected the name of a class or its index"),
        ("1000", "its classes are 0 to 999"),
    ):
        with pytest.raises(PromptError, match=message):
            model.encode_text([label])
    nameless = TimmModel(small(num_classes=7), "small")
    assert nameless.class_names is None
    assert nameless.encode_text(["6"]).shape == (1, 48)
    with pytest.raises(PromptError, match="classes of small have no names"):
        nameless.encode_text(["tabby"])


def test_localizing_classes() -> None:
    model = TimmModel(small(), "small")
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
    original = small(architecture)
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
    original = small(architecture)
    model = TimmModel(original, "small")
    assert model.modalities == ()
    pixels, prompts = torch.randn(2, 3, 64, 64), torch.randn(2, original.num_classes)
    expected = F.normalize(original(pixels), dim=-1)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    assert attribute(model, pixels, prompts).shape == (2, 2, 64, 64)
    # fine-tuned on ImageNet it is a classifier
    assert TimmModel(small(architecture, num_classes=1000), "small").modalities == ("text",)


def test_preprocessing_is_the_librarys() -> None:
    original = small()
    model = TimmModel(original, "small")
    image = Image.effect_noise((200, 150), 80).convert("RGB")
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(original))
    assert torch.equal(model.pixels(image), transform(image))
    whole = model.preprocess.whole(image)
    assert whole.shape == (3, 224, 304)  # the size that the library names for this architecture, in whole patches
    assert -1 <= whole.min() < whole.max() <= 1  # mean and deviation of 0.5
    oblong = TimmModel(small(patch_size=(16, 8)), "small")
    assert oblong.preprocess.whole(image).shape == (3, 224, 304)


def test_a_localizer_refuses_the_class_token_of_a_model_without_one() -> None:
    """Without the refusal it would explain the first patch in the class token's place."""
    trunk = timm.models.VisionTransformer(**SMALL, class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match="needs a class token"):
        Localizer(TimmModel(trunk, "small"), pooling="cls")


def test_a_view_of_ones_own_model() -> None:
    original = small("vit_base_patch16_dinov3")
    view, pixels = avgrad.view(original), torch.randn(2, 3, 48, 80)
    expected = F.normalize(original(pixels), dim=-1)
    torch.testing.assert_close(view.encode(pixels), expected, rtol=0, atol=1e-5)
    assert attribute(view, pixels, torch.randn(3, 48)).shape == (2, 3, 48, 80)
    with pytest.raises(UnsupportedModelError, match="Eva is in training mode"):
        avgrad.view(original.train())
    with pytest.raises(UnsupportedModelError, match=r"Cait cannot be explained: .*VisionTransformer"):
        avgrad.view(timm.create_model("cait_xxs24_224").eval())


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

    original, other = small(architecture), small(architecture)
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
    original = small(architecture)
    view, pixels = model_view(original, "small"), torch.randn(1, 3, 64, 64)
    before, state = view.encode(pixels), copy.deepcopy(dict(original.named_buffers()) | original.state_dict())
    view.encode(torch.randn(1, 3, 96, 32))
    after = dict(original.named_buffers()) | original.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert torch.equal(view.encode(pixels), before)


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
